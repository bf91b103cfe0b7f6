"""``sampling=``, from the argument to what is on record; gradients with blank rows and with users."""

import json

import pytest
import torch
from tests.small_run import RECORDS, epoch, make, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import BatchMemoryManager, Ledger, PrivacyEngine
from tacit.accounting import epsilon_interval
from tacit.accounting.events import counted
from tacit.errors import BudgetError, ConfigurationError, SamplingError
from tacit.planning import SAMPLINGS, sampling_of
from tacit.sampling import (
    CyclicPoissonSampling,
    EpochSampling,
    PoissonSampling,
    TruncatedPoissonSampling,
    UserPoissonSampling,
    WeightedPoissonSampling,
)

LOADER = DataLoader(TensorDataset(torch.zeros(RECORDS, 3)), batch_size=8)
USERS = torch.arange(RECORDS) // 3
OBJECTS = {
    "cyclic": CyclicPoissonSampling(RECORDS, 2, 0.5, 4),
    "users": UserPoissonSampling(USERS, 1 / 3, 3, most=2),
    "weighted": WeightedPoissonSampling(torch.linspace(0.1, 0.5, RECORDS), 3),
    "truncated, not padded": TruncatedPoissonSampling(RECORDS, 1 / 3, 3, 10, padding=False),
}
CHOICES = {**{name: name for name in SAMPLINGS}, **OBJECTS}


class TestSamplingOf:
    def test_names(self):
        assert sampling_of(LOADER) == sampling_of(LOADER, sampling="poisson") == PoissonSampling.from_loader(LOADER)
        assert sampling_of(LOADER, poisson=False) == sampling_of(LOADER, sampling="epochs")
        assert isinstance(sampling_of(LOADER, sampling="epochs"), EpochSampling)
        assert sampling_of(LOADER, sampling=OBJECTS["users"]) is OBJECTS["users"]

    @pytest.mark.parametrize("sampling", ["shuffled", 3, PoissonSampling])
    def test_others_are_refused_and_the_known_ones_named(self, sampling):
        with pytest.raises(ConfigurationError, match="'balls-in-bins', 'fixed-size'.*UserPoissonSampling"):
            sampling_of(LOADER, sampling=sampling)

    def test_two_answers_are_refused(self):
        with pytest.raises(ConfigurationError, match="say one of them only"):
            sampling_of(LOADER, sampling="fixed-size", poisson=False)


@pytest.mark.parametrize("choice", CHOICES)
class TestEveryChoice:
    def test_runs_and_is_on_record(self, choice, tmp_path):
        book = tmp_path / "book"
        engine, *parts = make(sampling=CHOICES[choice], ledger=book)
        for _ in range(2):
            epoch(*parts)
        sampling = engine.plan.sampling
        assert engine.accountant.steps == 2 * sampling.steps_per_epoch
        found = engine.accountant.get_interval(1e-3)
        assert 0 < found.lower <= found.upper < float("inf")
        facts = json.loads(engine.statement(1e-3).to_json())
        assert facts["sampling"] == sampling.description
        assert facts["adjacency"] == engine.accountant.adjacency
        assert facts["unit"] == sampling.unit
        assert facts["units"] == sampling.units
        later = PrivacyEngine()
        make(later, sampling=CHOICES[choice], ledger=book)
        assert sorted(map(str, later.accountant.history)) == sorted(map(str, engine.accountant.history))
        assert later.get_epsilon(1e-3) == engine.get_epsilon(1e-3)

    def test_what_was_planned_is_what_is_recorded(self, choice):
        engine, *parts = make(sampling=CHOICES[choice])
        sampling = engine.plan.sampling
        for _ in range(3):
            epoch(*parts)
        planned = counted(sampling.planned(1.0, 3 * sampling.steps_per_epoch))
        recorded = counted(engine.accountant.history)
        assert recorded == planned

    def test_a_calibrated_run_ends_below_its_target_and_stops_at_a_budget(self, choice):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        engine = PrivacyEngine()
        data = TensorDataset(torch.randn(RECORDS, 3), torch.randint(0, 2, (RECORDS,)))
        parts = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=8),
            target_epsilon=3.0,
            target_delta=1e-3,
            epochs=4,
            max_grad_norm=1.0,
            sampling=CHOICES[choice],
        )
        engine.budget(3.0, 1e-3)
        assert engine.remaining_steps >= 4 * len(parts[2])
        for _ in range(4):
            epoch(*parts)
        assert engine.remaining_steps == 0
        assert 2.99 <= engine.get_epsilon(1e-3) <= 3.0
        with pytest.raises(BudgetError, match="above the budget"):
            epoch(*parts)
        assert engine.get_epsilon(1e-3) <= 3.0

    def test_a_checkpoint_goes_on(self, choice, tmp_path):
        engine, model, optimizer, loader = make(sampling=CHOICES[choice])
        epoch(model, optimizer, loader)
        engine.save_checkpoint(tmp_path / "run.pt", module=model, optimizer=optimizer)
        spent = engine.get_epsilon(1e-3)
        resumed, model, optimizer, loader = make(sampling=CHOICES[choice])
        resumed.load_checkpoint(tmp_path / "run.pt", module=model, optimizer=optimizer)
        assert resumed.get_epsilon(1e-3) == spent
        for _ in range(2):
            epoch(model, optimizer, loader)
        straight, *parts = make(sampling=CHOICES[choice])
        for _ in range(3):
            epoch(*parts)
        assert resumed.get_epsilon(1e-3) == pytest.approx(straight.get_epsilon(1e-3), rel=1e-9)


def test_a_relation_without_a_proof_is_refused_before_anything_is_touched():
    for sampling, adjacency in (("fixed-size", "add-or-remove-one"), ("balls-in-bins", "replace-one")):
        with pytest.raises(ConfigurationError, match="proof"):
            make(PrivacyEngine(adjacency=adjacency), sampling=sampling)
    engine, *_ = make(PrivacyEngine(adjacency="replace-one"), sampling="poisson")
    assert engine.accountant.adjacency == "replace-one"


def test_replacing_costs_more_than_adding():
    engine, *parts = make(PrivacyEngine(adjacency="replace-one"))
    epoch(*parts)
    expected = epsilon_interval(noise_multiplier=1.0, sample_rate=1 / 3, steps=3, delta=1e-3, adjacency="replace-one")
    assert engine.accountant.get_interval(1e-3) == expected
    assert "replaced by any other one" in engine.statement(1e-3).text


def sums(model, batch, rows, bound=0.3):
    """The clipped sum of the gradients of some groups of rows of a batch, each group being one unit."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for unit in rows:
        loss = nn.functional.cross_entropy(model(batch[0][unit]), batch[1][unit])
        found = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([g.norm() for g in found]).norm()
        for kept, g in zip(total, found, strict=True):
            kept += g * min(1.0, bound / float(norm))
    return total


def run(sampling, mode, make_model=None, **settings):
    """A private run without noise in float64: (engine, model, plain copy, optimizer, loader, criterion)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() if make_model is None else make_model()
    data = TensorDataset(torch.randn(RECORDS, 3).double(), torch.randint(0, 2, (RECORDS,)))
    engine = PrivacyEngine()
    private, optimizer, loader, *rest = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=DataLoader(data, batch_size=8, generator=torch.Generator().manual_seed(2), **settings),
        noise_multiplier=0.0,
        max_grad_norm=0.3,
        sampling=sampling,
        grad_sample_mode=mode,
    )
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() if make_model is None else make_model()
    plain.load_state_dict(model.state_dict())
    return engine, private, plain, optimizer, loader, rest[0] if rest else nn.functional.cross_entropy


MODES = ["auto", "hooks", "ghost", "functorch"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_blank_rows_contribute_nothing(mode, workers):
    sampling = TruncatedPoissonSampling(RECORDS, 1 / 3, 6, 11)
    engine, model, plain, optimizer, loader, criterion = run(sampling, mode, num_workers=workers)
    sizes = []
    for x, y in loader:
        assert x.shape == (11, 3)
        real = int((x != 0).any(1).sum())
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        assert engine.stats.samples == real == len(engine.stats.norms)
        optimizer.step()
        expected = sums(plain, (x, y), [[i] for i in range(real)])
        for p, kept in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, kept / 8, rtol=1e-12, atol=1e-12)
        if mode == "hooks":
            assert all(not hasattr(p, "grad_sample") for p in model.parameters())
        sizes.append(real)
    assert len(set(sizes)) > 1


class Divides(nn.Module):
    """Its gradient for a blank row is NaN."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.linear(x / x.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("mode", MODES)
def test_blank_rows_that_divide_by_nothing_contribute_nothing(mode):
    sampling = TruncatedPoissonSampling(RECORDS, 1 / 3, 3, 12)
    _, model, plain, optimizer, loader, criterion = run(sampling, mode, Divides)
    for x, y in loader:
        real = int((x != 0).any(1).sum())
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        for p, kept in zip(model.parameters(), sums(plain, (x, y), [[i] for i in range(real)]), strict=True):
            torch.testing.assert_close(p.grad, kept / 8, rtol=1e-12, atol=1e-12)


def test_rows_of_a_padded_batch_must_stay_in_place():
    _, model, _, _, loader, _ = run(TruncatedPoissonSampling(RECORDS, 1 / 3, 3, 14), "auto")
    x, _ = next(iter(loader))
    with pytest.raises(SamplingError, match="rows were moved"):
        model(x.flip(0))


@pytest.mark.parametrize("sampling", ["truncated-poisson", UserPoissonSampling(USERS, 1.0, 3, most=2)], ids=str)
def test_reading_ahead_is_refused_where_rows_are_told_by_their_place(sampling):
    engine, model, _, loader = make(sampling=sampling)
    batches = iter(loader)
    first, _ = next(batches), next(batches)
    # With more padding than the earlier batch had, its last records are where blank rows should be.
    with pytest.raises(SamplingError, match="iterate the loader in step|should be blank ones"):
        nn.functional.cross_entropy(model(first[0]), first[1]).backward()
    assert engine.accountant.steps == 0


def test_a_pass_without_gradients_is_no_reading_ahead():
    _, model, optimizer, loader = make(sampling="truncated-poisson")
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    epoch(model, optimizer, loader)


def test_padded_batches_are_not_split():
    engine, _, optimizer, loader = make(sampling="truncated-poisson")
    with pytest.raises(ConfigurationError, match="padding=False"):
        BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer)
    assert engine.accountant.steps == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("most", [None, 3])
def test_a_users_records_are_clipped_together(mode, most):
    sampling = UserPoissonSampling(USERS, 1 / 2, 4, most=2)
    engine, model, plain, optimizer, loader, criterion = run(sampling, mode)
    owner = {tuple(row.tolist()): int(USERS[i]) for i, row in enumerate(loader.dataset.tensors[0])}

    def expected_of(x, y):
        users: dict[int, list[int]] = {}
        for place, row in enumerate(x):
            users.setdefault(owner[tuple(row.tolist())], []).append(place)
        return users, sums(plain, (x, y), list(users.values()))

    if most is None:
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            users, expected = expected_of(x, y)
            assert engine.stats.samples == len(users)
            assert all(len(rows) <= 2 for rows in users.values())
            optimizer.step()
            for p, kept in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(p.grad, kept / 4, rtol=1e-12, atol=1e-12)
        return
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=most, optimizer=optimizer) as physical:
        total, steps = [0.0] * 4, 0
        for x, y in physical:
            assert len(x) <= most
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            total = [kept + more for kept, more in zip(total, expected_of(x, y)[1], strict=True)]
            before = engine.accountant.steps
            optimizer.step()
            if engine.accountant.steps > before:
                for p, kept in zip(model.parameters(), total, strict=True):
                    torch.testing.assert_close(p.grad, kept / 4, rtol=1e-12, atol=1e-12)
                total, steps = [0.0] * 4, steps + 1
        assert steps == 4


def test_users_and_a_sample_index_are_two_answers():
    with pytest.raises(ConfigurationError, match="leave sample_index out"):
        make(sampling=OBJECTS["users"], sample_index=1)
    with pytest.raises(ConfigurationError, match="padding=False"):
        make(sampling="truncated-poisson", sample_index=1)


def test_a_refused_sample_index_touches_nothing(tmp_path):
    model, book = nn.Linear(3, 2), Ledger(tmp_path / "book")
    with pytest.raises(ConfigurationError, match="leave sample_index out"):
        PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=LOADER,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            sampling=OBJECTS["users"],
            sample_index=1,
            ledger=book,
        )
    assert "forward" not in model.__dict__
    assert book.summary()["runs"] == []


def test_a_sampling_of_another_data_set_is_refused():
    with pytest.raises(SamplingError, match="for 9 records and the dataset has 24"):
        make(sampling=PoissonSampling(9, 0.5, 2))


def test_a_step_over_two_groups_is_refused_and_releases_nothing():
    engine, model, optimizer, loader = make(sampling=OBJECTS["cyclic"])
    batches = iter(loader)
    optimizer.zero_grad()
    for _ in range(2):
        x, y = next(batches)
        nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(SamplingError, match=r"of the groups \[0, 1\]"):
        optimizer.step()
    assert engine.accountant.steps == 0
    step(model, optimizer, next(batches))
    assert engine.accountant.steps == 1
