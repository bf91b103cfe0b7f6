"""What adapters do beyond their gradients, which `tests/benchmarks/test_zoo.py` holds."""

from typing import Any

import peft
import pytest
import torch
from benchmarks.zoo.adapters import KINDS as ADAPTERS
from peft import get_peft_model
from tests.modes import mode_settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from tacit import FallbackWarning, PrivacyEngine
from tacit.testing import check_exactness

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
WORDS = 11


def bert() -> Any:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=WORDS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


class Quantized(nn.Module):
    """A frozen layer whose weight is no float tensor, as 4-bit layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-7, 8, (8, 8), dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).t()


def test_a_frozen_quantized_base_does_not_matter(exact: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.down, self.up = Quantized(), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    exact(Net(), torch.randn(4, 3, 8))


def test_several_adapters_and_merging_after_training() -> None:
    torch.manual_seed(0)
    model = get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"], lora_dropout=0.1)).train()
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["value"]))
    model.base_model.set_adapter(["default", "other"])
    engine = PrivacyEngine()
    ids, labels = torch.randint(1, WORDS, (8, 5)), torch.randint(0, WORDS, (8,))
    trainable = [p for p in model.parameters() if p.requires_grad]
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(trainable, lr=0.1),
        data_loader=DataLoader(TensorDataset(ids, labels), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for x, y in loader:
        optimizer.zero_grad()
        private(input_ids=x, labels=y).loss.backward()
        optimizer.step()
    engine.detach()
    model.eval()
    before = model(ids).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, before, rtol=1e-4, atol=1e-5)


def test_adaloras_own_penalty_is_part_of_each_samples_loss(exact: Any) -> None:
    """It depends on parameters alone, and is added to the mean of the batch: the model runs apart."""
    config = ADAPTERS["AdaLoRA"][1]()
    config.task_type = "SEQ_CLS"
    model, ids = get_peft_model(bert(), config).double().train(), torch.randint(1, WORDS, (3, 5))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.3)
    with pytest.warns(FallbackWarning):
        report = check_exactness(
            model,
            lambda m, b: m(input_ids=b[0], labels=b[1]).loss,
            (ids, torch.randint(0, WORDS, (3,))),
            **mode_settings(exact.mode),
            tolerance=1e-6,
        )
    assert float(report.reference.norms.max()) > 0
