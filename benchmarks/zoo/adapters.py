"""PEFT's adapters, each on a frozen model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor

from benchmarks.zoo.entry import Entry, lively
from benchmarks.zoo.hugging_face import HUGGING_FACE, WORDS, checkpointed

_ATTENTION = {"target_modules": ["query", "value"]}
_TEXT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}

KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "LoRA, on Conv1D": ("GPT-2", lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)),
    "LoRA, on embeddings": (
        "GPT-2",
        lambda: peft.LoraConfig(r=2, target_modules=["wte", "c_attn"], fan_in_fan_out=True),
    ),
    "rsLoRA": ("BERT", lambda: peft.LoraConfig(r=2, use_rslora=True, **_ATTENTION)),
    "DoRA": ("BERT", lambda: peft.LoraConfig(r=2, use_dora=True, **_ATTENTION)),
    "LoRA, modules_to_save": ("BERT", lambda: peft.LoraConfig(r=2, modules_to_save=["cls"], **_ATTENTION)),
    "IA3": (
        "BERT",
        lambda: peft.IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
    ),
    "AdaLoRA": (
        "BERT",
        lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, tinit=1, tfinal=2, **_ATTENTION),
    ),
    "VeRA": ("BERT", lambda: peft.VeraConfig(r=2, **_ATTENTION)),
    "prompt tuning": ("GPT-2", lambda: peft.PromptTuningConfig(**_TEXT)),
    "prefix tuning": ("GPT-2", lambda: peft.PrefixTuningConfig(**_TEXT)),
    "p-tuning": ("GPT-2", lambda: peft.PromptEncoderConfig(encoder_hidden_size=4, **_TEXT)),
    "two adapters": ("BERT", lambda: peft.LoraConfig(r=2, target_modules=["query"])),
}


def _build(name: str) -> Any:
    base, config = KINDS[name]
    model: Any = peft.get_peft_model(HUGGING_FACE[base].build(), config())
    if name == "two adapters":
        model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["value"]))
        model.base_model.set_adapter(["default", "other"])
    return lively(model)


def _ids(B: int, T: int) -> dict[str, Tensor]:
    ids = torch.randint(3, WORDS, (B, T))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "y": torch.randn(B, WORDS)}


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean squared distance of the last position's logits from the target: some adapters add positions."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -1]
    distance: Tensor = (logits - batch["y"]).square().mean(1).mean()
    return distance


def _entry(name: str) -> Entry:
    # Checkpointed blocks cannot be handed a prefix: transformers drops it.
    switch = None if name == "prefix tuning" else checkpointed
    return Entry(lambda: _build(name), _ids, loss_of, None, switch)


ADAPTERS: dict[str, Entry] = {name: _entry(name) for name in KINDS}
