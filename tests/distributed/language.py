"""Tiny language models for the processes: transformers is imported when one is made."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

LENGTH = 6  # of a sequence: as many as a head has dimensions, and as there are tokens


class Classifier(nn.Module):
    """Three classes from the last position of a language model, whose tokens are made of numbers."""

    def __init__(self, inner: Any, classes: int) -> None:
        super().__init__()
        self.inner = inner
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x * 100).long() % LENGTH
        return (
            self.inner(input_ids=tokens, use_cache=False).logits[:, -1, : self.classes].clone()
        )  # no view: FSDP warns of those


def gpt2(classes: int, **more: Any) -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=LENGTH, n_positions=8, n_embd=12, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    if more:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=more)
    return Classifier(model, classes)


def llama(classes: int) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=LENGTH, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8, attn_implementation="eager",
    )  # fmt: skip
    return Classifier(transformers.LlamaForCausalLM(config), classes)


def adapted(classes: int) -> nn.Module:
    """Low-rank adapters on a frozen Llama, whose blocks are recomputed."""
    import peft

    model = llama(classes)
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model.inner = peft.get_peft_model(model.inner, settings)
    layers = model.inner.base_model.model.model.layers
    for place, layer in enumerate(layers):
        layers[place] = checkpoint_wrapper(layer)
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks, or the wrappers around them, in the order in which they run."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    return list(stacks[0])


def in_type(rank: int, world: int, kind: torch.dtype) -> list[Any]:
    """The clipped sum of one record in each process, where modules run in some type and parameters are float32."""
    from scenarios import BOUND, Case, loader_of, model_of, shard, whole
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from tacit import PrivacyEngine

    found = []
    for mode in ("auto", "ghost"):
        plain = model_of("mlp").float()
        shard(plain, Case(wrap="shard", shard={"mp_policy": MixedPrecisionPolicy(param_dtype=kind)}))
        _, optimizer, loader, *rest = PrivacyEngine().make_private(
            module=plain,
            optimizer=torch.optim.SGD(plain.parameters(), lr=0.5),
            data_loader=loader_of(Case(batch=1)),
            grad_sample_mode=mode,
            noise_multiplier=0.0,
            max_grad_norm=BOUND / 10,
            loss_reduction="sum",
            sampling="epochs",
        )
        criterion = rest[0] if rest else nn.CrossEntropyLoss(reduction="sum")
        for x, y, index in loader:
            optimizer.zero_grad()
            before = {name: whole(p) for name, p in plain.named_parameters()}
            criterion(plain(x.float()).float(), y).backward()
            optimizer.step()
            types = all(p.grad.dtype == torch.float32 for p in plain.parameters())
            found.append((index.tolist(), before, {name: whole(p.grad) for name, p in plain.named_parameters()}, types))
            break
    return found
