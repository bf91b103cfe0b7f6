"""Several rows that are one unit of privacy: held to a loop over single units."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine
from tacit.errors import ConfigurationError, PrivacyError

MODES = pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
INDEX = {
    "interleaved": [0, 1, 2, 0, 1, 2],
    "unequal": [2, 0, 0, 1, 0, 2],
    "one by one": [0, 1, 2, 3],
    "one unit": [7, 7, 7, 7],
    "coinciding": [5, 3, 3, 5],
}


class Everything(nn.Module):
    """Uses of every kind: a table that is also the head, convolution, attention, normalization, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 4)
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.attend = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True)
        self.wide, self.scale = nn.Linear(4, 4), nn.Parameter(torch.randn(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.conv(self.table(ids).mT)).mT
        return F.linear(self.attend(x) * self.scale + self.wide(x), self.table.weight)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).square().sum(2).mean()


def make(model: nn.Module, records: int, **settings: Any) -> Any:
    engine = PrivacyEngine()
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=settings.pop("loader", DataLoader(TensorDataset(torch.arange(records)), batch_size=records)),
        noise_multiplier=0.0,
        max_grad_norm=settings.pop("bound", 0.05),
        **settings,
    )
    return engine, *made


def reference(model: nn.Module, rows: Tensor, index: Tensor, reduce: Callable[[nn.Module, Tensor], Tensor]) -> Any:
    norms, total = [], [torch.zeros_like(p) for p in model.parameters()]
    for unit in index.unique():
        model.zero_grad()
        reduce(model, rows[index == unit]).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
        for sum_, p in zip(total, model.parameters(), strict=True):
            sum_ += p.grad * min(1.0, 0.05 / float(norms[-1]))
    model.zero_grad()
    return torch.stack(norms), total


@MODES
@pytest.mark.parametrize("name", INDEX)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_units_equal_the_loop_over_units(mode: str, name: str, reduction: str) -> None:
    torch.manual_seed(0)
    index = torch.tensor(INDEX[name])
    model, rows = Everything().double(), torch.randint(0, 4, (len(index), 4))

    def loss(m: nn.Module, ids: Tensor) -> Tensor:
        each = m(ids).square().sum(2).mean(1)
        return each.mean() if reduction == "mean" else each.sum()

    norms, total = reference(model, rows, index, loss)
    engine, model, _, loader, *_ = make(model, len(norms), grad_sample_mode=mode, loss_reduction=reduction)
    next(iter(loader))
    with engine.samples(index):
        loss(model, rows).backward()
    torch.testing.assert_close(engine.stats.norms, norms, rtol=1e-9, atol=1e-12)
    for p, expected in zip(model.parameters(), total, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-12)
        if mode == "hooks":
            assert p.grad_sample.shape == (len(norms), *p.shape)


def test_ghosts_criterion_agrees() -> None:
    torch.manual_seed(0)
    index, target = torch.tensor(INDEX["unequal"]), torch.randn(6, 4, 4).double()
    model, rows = Everything().double(), torch.randint(0, 4, (6, 4))
    found = []
    for mode in ("auto", "ghost"):
        engine, private, _, loader, *rest = make(
            model, 3, grad_sample_mode=mode, **({"criterion": nn.MSELoss()} if mode == "ghost" else {})
        )
        next(iter(loader))
        criterion = rest[0] if rest else nn.MSELoss()
        with engine.samples(index):
            criterion(private(rows), target).backward()
        found.append([p.grad.clone() for p in private.parameters()])
        engine.detach()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@MODES
@pytest.mark.parametrize("attack", [1e6, float("nan"), float("inf")])
def test_no_unit_moves_the_sum_by_more_than_the_bound(mode: str, attack: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(7, 4).double()
    index = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    sums = []
    for rows, units in ((x, index), (x[index != 2], index[index != 2])):
        rows = rows.clone()
        if (units == 2).any():
            rows[-1] *= attack
        engine, private, _, loader, *_ = make(model, int(units.max()) + 1, grad_sample_mode=mode, loss_reduction="sum")
        next(iter(loader))
        with engine.samples(units):
            private(rows).square().sum().backward()
        sums.append(torch.cat([p.grad.flatten() for p in private.parameters()]))
        engine.detach()
    assert (sums[0] - sums[1]).norm() <= 0.05 * (1 + 1e-5)


class Augmented(Dataset[Any]):
    """Records of which collate makes two rows each."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Tensor:
        return torch.full((4,), float(i))


def two_of_each(records: list[Tensor]) -> dict[str, Tensor]:
    rows = torch.stack([view for x in records for view in (x, -x)])
    return {"x": rows, "unit": torch.arange(len(records)).repeat_interleave(2)}


@pytest.mark.parametrize("managed", [True, False])
def test_a_field_of_the_batch_through_a_training_loop(managed: bool) -> None:
    torch.manual_seed(0)
    loader = DataLoader(Augmented(), batch_size=3, collate_fn=two_of_each)
    engine, model, optimizer, private = make(nn.Linear(4, 2), 12, loader=loader, sample_index="unit")[:4]
    steps = 0

    def epoch(batches: Any) -> None:
        nonlocal steps
        for batch in batches:
            optimizer.zero_grad()
            model(batch["x"]).square().mean().backward()
            assert engine.stats.samples == len(batch["unit"].unique())
            optimizer.step()
            steps += 1

    for _ in range(6):
        if managed:
            with BatchMemoryManager(data_loader=private, max_physical_batch_size=2, optimizer=optimizer) as physical:
                epoch(physical)
        else:
            epoch(private)
    assert engine.accountant.steps == 24
    assert steps >= 24


class TestRefused:
    def run(self, index: Any, records: int = 3, rows: int = 6) -> None:
        engine, model, _, loader, *_ = make(nn.Linear(4, 2), records)
        next(iter(loader))
        with engine.samples(index):
            model(torch.randn(rows, 4)).sum().backward()

    def test_units_of_several_records(self) -> None:
        with pytest.raises(PrivacyError, match="2 units, and 3 records.*twice the bound.*one item of the data set"):
            self.run(torch.tensor([0, 1, 0, 1, 0, 1]))

    def test_more_units_than_records(self) -> None:
        with pytest.raises(PrivacyError, match="6 units, and 3 records"):
            self.run(torch.arange(6))

    @pytest.mark.parametrize(
        ("index", "words"),
        [
            (torch.tensor([0, 1, 2]), "has 3 entries and the batch 6 rows"),
            (torch.ones(6), r"torch\.float32 \(6,\).*integers"),
            (torch.zeros(6, 1, dtype=torch.int64), r"\(6, 1\)"),
            ([0, 0, 1, 1, 2, 2], "is a list"),
        ],
    )
    def test_what_is_no_index(self, index: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            self.run(index)

    def test_a_field_that_is_not_there(self) -> None:
        *_, private = make(nn.Linear(4, 2), 3, sample_index="user")[:4]
        with pytest.raises(ConfigurationError, match="sample_index='user': the batch, a .*, has no such field"):
            next(iter(private))

    def test_two_indices_in_one_backward(self) -> None:
        engine, model, _, loader, *_ = make(nn.Linear(4, 2), 3)
        next(iter(loader))
        x = torch.randn(6, 4)
        with engine.samples(torch.tensor([0, 0, 1, 1, 2, 2])):
            first = model(x)
        with engine.samples(torch.tensor([0, 1, 2, 0, 1, 2])):
            second = model(x)
        with pytest.raises(PrivacyError, match="cannot be matched"):
            (first + second).sum().backward()
