"""Hugging Face's causal language models, built from a configuration without allocating anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit.errors import ConfigurationError
from tacit.scaling.activations import SavedTensors, not_counted

_ATTENTION = "tacit-shapes"


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a file, or in the folder's ``config.json``.

    Raises:
        ConfigurationError: there is none, or it does not say what kind of model it is.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read as a configuration in JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise ConfigurationError(
            f'{file} is no configuration of a Hugging Face model: it has no "model_type". Pass a config.json.'
        )
    return found


def build(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A causal language model on the device "meta", in train mode. Weights are neither made nor downloaded.

    Raises:
        ConfigurationError: transformers is missing, or knows no such model.
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"models are built from configurations by {error.name}, which is not installed: pip install transformers."
        ) from error
    AttentionInterface.register(_ATTENTION, _attention)
    settings = dict(config)
    try:
        known = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(known, dtype=dtype, attn_implementation=_ATTENTION)
    except KeyError as error:
        if error.args != (_ATTENTION,):
            raise
        raise ConfigurationError(
            f"a {config['model_type']} chooses between kernels of its own, without transformers' AttentionInterface: "
            "its attention cannot be counted from shapes. Measure a small one instead: engine.explain()."
        ) from error
    except (ValueError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        raise ConfigurationError(
            f"no causal language model can be built from this configuration (model_type {config['model_type']!r}): "
            f"{error}"
        ) from error
    return model.train()


def token_loss(model: nn.Module, config: dict[str, Any], samples: int, length: int) -> Callable[[SavedTensors], Tensor]:
    """The loss of the next token, over ``samples`` sequences of ``length`` tokens.

    Raises:
        ConfigurationError: the model has fewer positions.
    """
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if isinstance(positions, int) and length > positions:
        raise ConfigurationError(f"--length {length} is more than the model's {positions} positions.")

    def loss(saved: SavedTensors) -> Tensor:
        ids = torch.zeros((samples, length), dtype=torch.int64, device="meta")
        _saved.append(saved)
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        finally:
            _saved.pop()
        return F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")

    return loss


_saved: list[SavedTensors] = []


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **_settings: Any
) -> tuple[Tensor, None]:
    """Shapes of attention by a fused kernel: it saves operands, output and one number for each row, but no (T, T).

    On the device "meta" torch would run, and count, the kernel that saves all attention weights.
    """
    shared = query.shape[1] != key.shape[1]
    with not_counted():
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared)
    out = out.transpose(1, 2).contiguous()
    for each in (query, key, value, out):
        _saved[-1].add(each.detach())
    _saved[-1].add(torch.empty(query.shape[:3], dtype=torch.float32, device="meta"))
    return out, None
