"""Hugging Face's own classes, tiny, built from configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers as hf
from torch import Tensor

from benchmarks.zoo.entry import Entry

WORDS, WIDTH = 11, 8
_TEXT: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
_DECODER = _TEXT | {"intermediate_size": 8, "num_key_value_heads": 1, "max_position_embeddings": 16, "use_cache": False}
_ENCODER = _TEXT | {
    "intermediate_size": 8,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


Batch = dict[str, Tensor]


def _ids(B: int, T: int) -> Batch:
    return {"input_ids": torch.randint(3, WORDS, (B, T)), "y": torch.randn(B, T, WORDS)}


def _pictures(B: int, _T: int) -> Batch:
    return {"pixel_values": torch.randn(B, 3, 8, 8), "y": torch.randn(B, 3)}


def _two_texts(B: int, T: int) -> Batch:
    batch = _ids(B, T)
    return batch | {"decoder_input_ids": batch["input_ids"].flip(1)}


def loss_of(model: Any, batch: Batch) -> Tensor:
    """The mean squared distance of the logits from the target."""
    inputs = {key: value for key, value in batch.items() if key != "y"}
    distances: Tensor = (model(**inputs).logits - batch["y"]).square()
    return distances.flatten(1).mean(1).mean()


def checkpointed(model: Any, reentrant: bool) -> Any:
    """Switch the model's own activation checkpointing on."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant and model.main_input_name == "input_ids":
        model.enable_input_require_grads()
    return model


def _entry(
    build: Callable[[], Any], lora: tuple[str, ...], batch: Callable[[int, int], Batch] = _ids, **settings: Any
) -> Entry:
    def adapted(model: Any) -> Any:
        fan = type(model) is hf.GPT2LMHeadModel
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=list(lora), fan_in_fan_out=fan))

    return Entry(build, batch, loss_of, adapted, checkpointed, **settings)


_SINGLE = {"precision": 1e-6}  # they normalize, or route, in float32 inside

HUGGING_FACE: dict[str, Entry] = {
    "GPT-2": _entry(
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
    "BERT": _entry(lambda: hf.BertForMaskedLM(hf.BertConfig(**_ENCODER)), ("query", "value")),
    "RoBERTa": _entry(lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**_ENCODER)), ("query", "value")),
    "DistilBERT": _entry(
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
    "Llama": _entry(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)), ("q_proj", "v_proj"), **_SINGLE),
    "Mistral": _entry(lambda: hf.MistralForCausalLM(hf.MistralConfig(**_DECODER)), ("q_proj", "v_proj"), **_SINGLE),
    "Qwen3": _entry(
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=4, **_DECODER)), ("q_proj", "v_proj"), **_SINGLE
    ),
    "Mixtral": _entry(
        lambda: hf.AutoModelForCausalLM.from_config(
            hf.MixtralConfig(num_local_experts=4, **_DECODER), experts_implementation="batched_mm"
        ),
        ("q_proj", "v_proj"),
        **_SINGLE,
    ),
    "T5": _entry(
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
        **_SINGLE,
    ),
    "ViT": _entry(
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
    ),
}
