"""Mixtures of experts: Hugging Face's, and three that people write themselves."""

import contextlib
from typing import Any

import peft
import pytest
import torch
from benchmarks.zoo.networks import Routed
from tests.modes import mode_settings
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig

from tacit.errors import MemoryBudgetError, PrivacyError
from tacit.testing import check_exactness, private_gradients, single_sample_loop

# The eager loop picks a matrix by a number that the batch decides: its experts run apart.
EAGER = pytest.param("eager", marks=pytest.mark.filterwarnings("ignore::tacit.errors.FallbackWarning"))

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "use_cache": False,
}
CONFIGS = {
    "mixtral": lambda **more: MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **SIZES, **more),
    "qwen2_moe": lambda **more: Qwen2MoeConfig(
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=4,
        shared_expert_intermediate_size=4,
        decoder_sparse_step=1,
        **SIZES,
        **more,
    ),
}


def build(name: str, experts: str, **more: Any) -> Any:
    return AutoModelForCausalLM.from_config(CONFIGS[name](**more), experts_implementation=experts).train()


def logits(m: Any, b: Any, c: Any) -> Tensor:
    return c(m(b[0]).logits, b[1])


@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (1, 3)])
@pytest.mark.parametrize("experts", [EAGER, "batched_mm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_language_models(exact: Any, name: str, experts: str, B: int, T: int) -> None:
    model, ids = build(name, experts).double(), torch.randint(0, 11, (B, T))
    exact_to_float32(exact, model, ids)


def exact_to_float32(exact: Any, model: nn.Module, ids: Tensor) -> None:
    """The routers and norms of these models compute in float32."""
    target = torch.randn(*ids.shape, 11).double()
    report = check_exactness(
        model,
        logits,
        (ids, target),
        criterion=nn.MSELoss(),
        **mode_settings(exact.mode),
        tolerance=1e-6,
    )
    assert float(report.reference.norms.max()) > 0


def checkpointed(model: Any, *, reentrant: bool) -> Any:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [None, True, False], ids=["whole", "reentrant", "checkpointed"])
@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (1, 3)])
@pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
@pytest.mark.parametrize("name", CONFIGS)
def test_grouped_products(name: str, mode: str, B: int, T: int, reentrant: bool | None) -> None:
    """torch has them in float32 at most; the loop runs the same weights in another way."""
    torch.manual_seed(0)
    grouped, plain = build(name, "grouped_mm"), build(name, "eager")
    plain.load_state_dict(grouped.state_dict())
    if reentrant is not None:
        checkpointed(grouped, reentrant=reentrant)
    batch = torch.randint(0, 11, (B, T)), torch.randn(B, T, 11)
    reference = single_sample_loop(plain, logits, batch, criterion=nn.MSELoss())
    bound = reference.max_grad_norm
    norms, sums = private_gradients(
        grouped, logits, batch, criterion=nn.MSELoss(), max_grad_norm=bound, grad_sample_mode=mode
    )
    torch.testing.assert_close(norms, reference.norms, rtol=1e-4, atol=0)
    for parameter, total in reference.sums.items():
        torch.testing.assert_close(sums[parameter].double(), total, rtol=1e-3, atol=1e-5 * bound)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("experts", [EAGER, "batched_mm"])
def test_checkpointing(exact: Any, experts: str, reentrant: bool) -> None:
    model = checkpointed(build("mixtral", experts).double(), reentrant=reentrant)
    two_passes = reentrant and exact.mode == "bounded"
    with pytest.raises(MemoryBudgetError) if two_passes else contextlib.nullcontext():
        exact_to_float32(exact, model, torch.randint(0, 11, (4, 4)))


def test_the_load_balancing_loss_mixes_samples(exact_auto: Any) -> None:
    model = build("mixtral", "batched_mm", output_router_logits=True).double()
    with pytest.raises(PrivacyError, match="output_router_logits=False"):
        exact_auto.loss(model, lambda m, b: m(b, labels=b).loss, torch.randint(0, 11, (4, 4)))


@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (1, 3), (2, 1)])
@pytest.mark.parametrize("style", ["masks", "index_add", "dense"])
def test_experts_as_people_write_them(exact: Any, style: str, B: int, T: int) -> None:
    exact(Routed(style), torch.randn(B, T, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning", "error::tacit.errors.FallbackWarning")
def test_adapters_around_frozen_grouped_experts() -> None:
    torch.manual_seed(0)
    grouped = build("mixtral", "grouped_mm")
    model = peft.get_peft_model(grouped, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    ids, target = torch.randint(0, 11, (4, 4)), torch.randn(4, 4, 11)
    norms, _ = private_gradients(model, logits, (ids, target), criterion=nn.MSELoss(), max_grad_norm=1.0)
    for i in range(4):
        model.zero_grad()
        nn.MSELoss()(model(ids[i : i + 1]).logits, target[i : i + 1]).backward()
        own = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        torch.testing.assert_close(norms[i].float(), own, rtol=1e-4, atol=0)
