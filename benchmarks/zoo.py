"""Hugging Face's models, tiny and with random weights: what tests and the table of models train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

WORDS, WIDTH = 11, 8
_TEXT: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
_DECODER = _TEXT | {"intermediate_size": 8, "num_key_value_heads": 1, "max_position_embeddings": 16, "use_cache": False}
_ENCODER = _TEXT | {
    "intermediate_size": 8,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Entry:
    """One model: how to build it, its inputs, its output, and which linear layers LoRA adapts."""

    build: Callable[[], Any]
    lora: tuple[str, ...]
    inputs: Callable[[int, int], dict[str, Tensor]] = lambda B, T: {"input_ids": torch.randint(3, WORDS, (B, T))}
    own_loss: bool = True


def _pictures(B: int, _T: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(B, 3, 8, 8)}


def _two_texts(B: int, T: int) -> dict[str, Tensor]:
    ids = torch.randint(3, WORDS, (B, T))
    return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}


MODELS: dict[str, Entry] = {
    "GPT-2": Entry(
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=WORDS,
                n_positions=16,
                n_embd=WIDTH,
                n_layer=1,
                n_head=2,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        ),
        ("c_attn", "c_proj"),
    ),
    "BERT": Entry(lambda: hf.BertForMaskedLM(hf.BertConfig(**_ENCODER)), ("query", "value")),
    "RoBERTa": Entry(lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**_ENCODER)), ("query", "value")),
    "DistilBERT": Entry(
        lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(
                vocab_size=WORDS,
                max_position_embeddings=20,
                dim=WIDTH,
                n_layers=1,
                n_heads=2,
                hidden_dim=8,
                dropout=0.0,
                attention_dropout=0.0,
            )
        ),
        ("q_lin", "v_lin"),
    ),
    "Llama": Entry(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)), ("q_proj", "v_proj")),
    "Mistral": Entry(lambda: hf.MistralForCausalLM(hf.MistralConfig(**_DECODER)), ("q_proj", "v_proj")),
    "Qwen3": Entry(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=4, **_DECODER)), ("q_proj", "v_proj")),
    "Mixtral": Entry(
        lambda: hf.AutoModelForCausalLM.from_config(
            hf.MixtralConfig(num_local_experts=4, **_DECODER), experts_implementation="batched_mm"
        ),
        ("q_proj", "v_proj"),
    ),
    "T5": Entry(
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=WORDS,
                d_model=WIDTH,
                d_kv=4,
                d_ff=8,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                use_cache=False,
                decoder_start_token_id=0,
            )
        ),
        ("q", "v"),
        _two_texts,
    ),
    "ViT": Entry(
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                image_size=8,
                patch_size=4,
                num_labels=3,
            )
        ),
        ("query", "value", "q_proj", "v_proj"),
        _pictures,
        own_loss=False,
    ),
}


def build(name: str) -> nn.Module:
    """Return the model in train mode, in float64."""
    torch.manual_seed(0)
    model: nn.Module = MODELS[name].build()
    return model.double().train()


def with_lora(name: str, **settings: Any) -> nn.Module:
    """Return the model with a LoRA adapter whose second factor is not zero."""
    import peft

    entry = MODELS[name]
    fan = name == "GPT-2"
    config = peft.LoraConfig(r=2, target_modules=list(entry.lora), fan_in_fan_out=fan, **settings)
    model: nn.Module = peft.get_peft_model(build(name), config).double().train()  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


def checkpointed(model: nn.Module, *, reentrant: bool) -> nn.Module:
    """Switch the model's own activation checkpointing on."""
    changed: Any = model
    changed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        changed.enable_input_require_grads()
    return model


def batch_of(name: str, B: int = 3, T: int = 5) -> dict[str, Tensor]:
    """Inputs, and a target ``y`` of the shape of the logits."""
    torch.manual_seed(1)
    batch = {
        key: value.double() if value.is_floating_point() else value for key, value in MODELS[name].inputs(B, T).items()
    }
    return batch | {"y": torch.randn(B, T, WORDS).double() if name != "ViT" else torch.randn(B, 3).double()}


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean squared distance of the logits from the target."""
    inputs = {key: value for key, value in batch.items() if key != "y"}
    distances: Tensor = (model(**inputs).logits - batch["y"]).square()
    return distances.flatten(1).mean(1).mean()
