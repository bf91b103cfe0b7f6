from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import ConfigurationError, LayoutError
from tacit.testing import private_gradients

MODES = pytest.mark.parametrize("mode", ["sum", "mean", "max"])


class Bag(nn.Module):
    """A bag whose table is used once more, so that gradients of several kinds are joined."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 4, **settings)

    def forward(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.bag(ids, None, weights) @ self.bag.weight.t()


@MODES
@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (1, 6), (4, 1)])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_bags_in_rows(exact: Any, mode: str, B: int, T: int, padding: int | None) -> None:
    exact(Bag(mode=mode, padding_idx=padding), torch.randint(0, 6, (B, T)))


@MODES
def test_repeated_ids_count_once_for_each(exact: Any, mode: str) -> None:
    exact(Bag(mode=mode), torch.full((3, 8), 2))
    exact(Bag(mode=mode, padding_idx=2), torch.tensor([[2, 2, 2], [2, 1, 1], [3, 3, 2]]))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_scaled_by_the_samples_own_frequencies(mode: str) -> None:
    """As nn.Embedding does it. (torch 2.13's bags divide by the frequency of another id.)"""
    torch.manual_seed(0)
    ids = torch.randint(0, 3, (4, 6))
    bag = nn.EmbeddingBag(6, 4, mode=mode, scale_grad_by_freq=True).double()
    plain = nn.Embedding(6, 4, scale_grad_by_freq=True, _weight=bag.weight.detach().clone()).double()
    found = private_gradients(bag, lambda m, b: m(b).square().mean(), ids, max_grad_norm=0.1)
    reduce = getattr(torch, mode)
    expected = private_gradients(plain, lambda m, b: reduce(m(b), 1).square().mean(), ids, max_grad_norm=0.1)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1]["weight"], expected[1]["weight"])


def test_weights_of_the_batch_and_trainable_ones(exact: Any) -> None:
    exact(Bag(mode="sum"), torch.randint(0, 6, (4, 4)), torch.randn(4, 4))

    class Learned(Bag):
        def __init__(self) -> None:
            super().__init__(mode="sum")
            self.weights = nn.Parameter(torch.randn(5))

        def forward(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
            return super().forward(ids, self.weights.expand(ids.shape))

    exact(Learned(), torch.randint(0, 6, (3, 5)))


def test_what_is_refused(exact_auto: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_norm"):
        exact_auto.private(Bag(max_norm=1.0), torch.randint(0, 6, (3, 4)))


class Offsets(nn.Module):
    """Bags given as one long list and the places where they begin, as recommenders do."""

    def __init__(self, mode: str, **settings: Any) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(6, 4, mode=mode, **settings), nn.Linear(4, 2)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.bag(ids, offsets))


def ragged(sizes: list[int]) -> tuple[Tensor, Tensor]:
    sizes_tensor = torch.tensor(sizes)
    return torch.randint(0, 6, (sum(sizes),)), sizes_tensor.cumsum(0) - sizes_tensor


def private(model: nn.Module, records: int, mode: str = "auto") -> tuple[PrivacyEngine, nn.Module]:
    engine = PrivacyEngine()
    loader = DataLoader(TensorDataset(torch.arange(records)), batch_size=records)
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=loader,
        noise_multiplier=0.0,
        max_grad_norm=0.1,
        loss_reduction="sum",
        grad_sample_mode=mode,
    )
    next(iter(made[2]))
    return engine, made[0]


@MODES
@pytest.mark.parametrize("grad_sample_mode", ["auto", "hooks", "ghost"])
@pytest.mark.parametrize("sizes", [[3, 1, 4], [2, 0, 5, 1], [4], [2, 2], [1, 1, 1]])
@pytest.mark.parametrize("padding", [None, 2])
def test_offsets(mode: str, grad_sample_mode: str, sizes: list[int], padding: int | None) -> None:
    torch.manual_seed(0)
    model = Offsets(mode, padding_idx=padding).double()
    ids, offsets = ragged(sizes)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    norms = []
    for i, size in enumerate(sizes):
        model.zero_grad()
        start = int(offsets[i])
        model(ids[start : start + size], torch.tensor([0])).square().sum().backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        norms.append(norm)
        for name, p in model.named_parameters():
            expected[name] += p.grad * min(1.0, 0.1 / float(norm))
    model.zero_grad()
    engine, model = private(model, len(sizes), grad_sample_mode)
    model(ids, offsets).square().sum().backward()
    torch.testing.assert_close(engine.stats.norms, torch.stack(norms), rtol=1e-9, atol=1e-12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_as_many_ids_as_samples_in_other_bags_are_refused() -> None:
    _, model = private(Offsets("mean"), 3)
    with pytest.raises(LayoutError, match="as many ids as samples"):
        model(*ragged([2, 0, 1]))
