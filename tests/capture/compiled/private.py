"""Private models for tests of torch.compile, and what their gradients should be."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.testing import private_gradients, single_sample_loop

Loss = Callable[[nn.Module, Any], Tensor]


class Counted:
    """A backend that counts the graphs that it compiles."""

    def __init__(self, name: str = "aot_eager") -> None:
        self.graphs = 0
        self._backend = torch._dynamo.lookup_backend(name)

    def __call__(self, graph: Any, inputs: Any, **options: Any) -> Any:
        self.graphs += 1
        return self._backend(graph, inputs, **options)


def attach(model: nn.Module, bound: float = 1.0, **settings: Any) -> PrivacyEngine:
    """Make a model private, in place and without noise."""
    engine = PrivacyEngine()
    engine.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.arange(8)), batch_size=4),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        **settings,
    )
    return engine


def gradients(model: nn.Module, call: Callable[..., Any], loss: Loss, batch: Any) -> dict[str, Tensor]:
    """The clipped sums of one backward through ``call``, which runs ``model``."""
    for parameter in model.parameters():
        parameter.grad = None
    loss(call, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    scale = max(float(g.abs().max()) for g in right.values())
    for name, value in right.items():
        error = float((found[name].double() - value.double()).abs().max())
        assert error <= tolerance * scale, f"{name}: {error:.1e}"


def assert_exact(
    model: nn.Module,
    loss: Loss,
    batches: list[Any],
    *,
    backend: Any = "aot_eager",
    tolerance: float = 1e-9,
    loop_tolerance: float | None = None,
    **options: Any,
) -> None:
    """Hold a compiled private model to the eager private one, and to the loop over single samples."""
    plain = copy.deepcopy(model)
    bound = single_sample_loop(plain, loss, batches[0]).max_grad_norm
    attach(model, bound)
    compiled = torch.compile(model, backend=backend, fullgraph=True, **options)
    for batch in batches:
        found = gradients(model, compiled, loss, batch)
        eager = private_gradients(plain, loss, batch, max_grad_norm=bound)[1]
        assert_close(found, eager, tolerance)
        right = single_sample_loop(plain, loss, batch, max_grad_norm=bound).sums
        assert_close(found, dict(right), tolerance if loop_tolerance is None else loop_tolerance)
