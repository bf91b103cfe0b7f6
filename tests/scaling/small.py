"""Small models as configurations: dimensions that differ, and dimensions that coincide."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModelForCausalLM

from tacit import PrivacyEngine
from tacit.scaling.models import build, token_loss
from tacit.scaling.survey import Survey, survey

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "vocab_size": 1000,
    "n_positions": 128,
    "attn_pdrop": 0.0,  # with it, a CPU has no fused kernel
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EQUAL = LLAMA | {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 8,
}
"""With 8 sequences of 8 tokens."""

SIZES: dict[str, tuple[dict[str, Any], int, int]] = {
    "llama": (LLAMA, 4, 64),
    "long": (LLAMA | {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6, "vocab_size": 300}, 2, 256),
    "gpt2": (GPT2, 4, 64),
    "equal": (EQUAL, 8, 8),
}


def surveyed(name: str, dtype: torch.dtype = torch.float32) -> Survey:
    config, samples, length = SIZES[name]
    model = build(config, dtype)
    return survey(model, token_loss(model, config, samples, length))


def of_module(model: nn.Module, *shape: int) -> Survey:
    """Of a module that takes one tensor."""
    model = model.to("meta")
    return survey(model, lambda _: model(torch.empty(shape, device="meta")).sum())


def real(name: str, *, checkpointing: bool = False) -> tuple[nn.Module, Tensor]:
    """The model itself, in float32, and a batch for it."""
    config, samples, length = SIZES[name]
    settings = dict(config)
    torch.manual_seed(0)
    known = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(known, dtype=torch.float32).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model, torch.randint(0, config["vocab_size"], (samples, length))


def loss_of(model: nn.Module, ids: Tensor, criterion: Any = None) -> Tensor:
    return outputs_and_loss(model, ids, criterion)[1]


def outputs_and_loss(model: nn.Module, ids: Tensor, criterion: Any = None) -> tuple[Tensor, Tensor]:
    """Outputs too: a loop keeps them until its next step."""
    logits = model(input_ids=ids, use_cache=False).logits
    if criterion is not None:
        return logits, criterion(logits.transpose(1, 2), ids)
    return logits, F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")


def private(model: nn.Module, ids: Tensor, mode: str) -> tuple[PrivacyEngine, Tensor, Any]:
    """Make a model private: the engine, the batch, and a criterion in ghost mode."""
    settings: dict[str, dict[str, Any]] = {
        "auto": {},
        "ghost": {"grad_sample_mode": "ghost", "criterion": nn.CrossEntropyLoss()},
        "per_layer": {"clipping": "per_layer"},
    }
    engine = PrivacyEngine()
    _, _, loader, *criterion = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(ids), batch_size=len(ids)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        sampling="full-batch",
        **settings[mode],
    )
    ((batch,),) = list(loader)
    return engine, batch, criterion[0] if criterion else None
