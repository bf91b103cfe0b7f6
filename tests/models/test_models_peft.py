"""Adapters of every kind on frozen models."""

from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from tacit import FallbackWarning, PrivacyEngine
from tacit.testing import check_exactness

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
WORDS = 11


def gpt2() -> Any:
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=8, n_layer=2, n_head=2, pad_token_id=0, **settings)
    )


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


C_ATTN = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
TEXT = {"task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, Any] = {
    "lora": lambda: (gpt2(), peft.LoraConfig(r=2, **C_ATTN)),
    "rslora": lambda: (gpt2(), peft.LoraConfig(r=2, use_rslora=True, **C_ATTN)),
    "dora": lambda: (bert(), peft.LoraConfig(r=2, use_dora=True, target_modules=["query", "value"])),
    "embedding": lambda: (gpt2(), peft.LoraConfig(r=2, target_modules=["wte", "c_attn"], fan_in_fan_out=True)),
    "modules to save": lambda: (
        bert(),
        peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]),
    ),
    "ia3": lambda: (
        bert(),
        peft.IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
    ),
    "vera": lambda: (bert(), peft.VeraConfig(r=2, target_modules=["query", "value"])),
    "adalora": lambda: (
        bert(),
        peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, tinit=1, tfinal=2, target_modules=["query", "value"]),
    ),
    "prompt tuning": lambda: (gpt2(), peft.PromptTuningConfig(num_virtual_tokens=3, **TEXT)),
    "p-tuning": lambda: (
        gpt2(),
        peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=4, **TEXT),
    ),
    "prefix tuning": lambda: (gpt2(), peft.PrefixTuningConfig(num_virtual_tokens=3, **TEXT)),
}


def build(name: str) -> Any:
    base, config = ADAPTERS[name]()
    model = get_peft_model(base, config).double().train()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude" not in key:
            nn.init.normal_(parameter, std=0.3)
    return model


def logits(m: Any, b: Any, c: Any) -> Tensor:
    out = m(b[0]).logits
    return c(out[:, -1] if out.dim() == 3 else out, b[1])


@pytest.mark.parametrize("B", [1, 3, 5])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(exact: Any, name: str, B: int) -> None:
    model = build(name)
    exact.loss(model, logits, (torch.randint(1, WORDS, (B, 5)), torch.randint(0, WORDS, (B,))), nn.CrossEntropyLoss())


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
    base, config = ADAPTERS["adalora"]()
    config.task_type = "SEQ_CLS"
    model, ids = get_peft_model(base, config).double().train(), torch.randint(1, WORDS, (3, 5))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.3)
    with pytest.warns(FallbackWarning):
        report = check_exactness(
            model,
            lambda m, b: m(input_ids=b[0], labels=b[1]).loss,
            (ids, torch.randint(0, WORDS, (3,))),
            grad_sample_mode=exact.mode,
            tolerance=1e-6,
        )
    assert float(report.reference.norms.max()) > 0
