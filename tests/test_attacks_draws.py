"""Ways to have a record released under another draw than its own that were found: booked rightly, or refused."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine
from tacit.errors import BudgetError, PrivacyError, SamplingError, SecondBackwardError

RECORDS = 12


class Told(nn.Module):
    """Each record moves a weight of its own by its bound, 1: a gradient tells how often each was counted."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(RECORDS))

    def forward(self, x):
        return (x * self.weight).sum(1) * 10


def make(batch_size=4, **changes):
    torch.manual_seed(0)
    model, engine = Told(), PrivacyEngine()
    settings = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "poisson_sampling": False, "loss_reduction": "sum"}
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(
            TensorDataset(torch.eye(RECORDS)), batch_size, shuffle=True, generator=torch.Generator().manual_seed(0)
        ),
        **settings | changes,
    )
    return engine, *made


def counts(model):
    return [round(float(count)) for count in model.weight.grad]


def of(*batches):
    return [round(float(count)) for count in torch.cat(batches).sum(0)]


class TestBatchesThatWereReleased:
    def setup_method(self):
        self.engine, self.model, self.optimizer, self.loader = make()
        self.batches = iter(self.loader)
        (self.x,) = next(self.batches)

    def backward(self, x):
        self.model(x).sum().backward()

    def test_once_more_and_released_after_the_next_draw(self):
        self.backward(self.x)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.backward(self.x)
        (other,) = next(self.batches)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that noise alone was released
            with pytest.raises(SamplingError, match="was released already"):
                self.optimizer.step()
        assert self.engine.accountant.steps == 1
        self.optimizer.zero_grad()
        self.backward(other)
        self.optimizer.step()
        assert counts(self.model) == of(other)
        assert self.engine.accountant.steps == 2

    def test_gradients_after_a_step_may_be_looked_at(self):
        self.backward(self.x)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.backward(self.x)
        assert counts(self.model) == of(self.x)
        (other,) = next(self.batches)
        self.optimizer.zero_grad()
        self.backward(other)
        self.optimizer.step()
        assert self.engine.accountant.steps == 2

    @pytest.mark.parametrize("cleared", [False, True])
    def test_a_step_without_a_backward_is_noise_alone(self, cleared):
        self.backward(self.x)
        self.optimizer.step()
        if cleared:
            self.optimizer.zero_grad()
        next(self.batches)
        with pytest.warns(UserWarning, match="noise alone was released"):
            self.optimizer.step()
        assert self.engine.accountant.steps == 2

    def test_what_a_budget_refused_is_not_released_as_noise_alone(self):
        self.engine, self.model, self.optimizer, self.loader = make(noise_multiplier=1.0)
        self.engine.budget(epsilon=1e-3, delta=1e-5)
        batches = iter(self.loader)
        self.backward(next(batches)[0])
        with pytest.raises(BudgetError):
            self.optimizer.step()
        next(batches)
        with pytest.raises(SamplingError, match="its step failed"):
            self.optimizer.step()


class TestForwardsOfEarlierDraws:
    """A loss is kept while the loader goes on."""

    def setup_method(self):
        self.engine, self.model, self.optimizer, self.loader = make(6, poisson_sampling=True, noise_multiplier=1e-3)
        self.batches = iter(self.loader)
        (self.x,) = next(self.batches)
        self.kept = self.model(self.x).sum()
        (self.other,) = next(self.batches)
        assert len(self.x) > 2
        assert len(self.other) > 2
        assert 2 in of(self.x, self.other)  # some record is in both

    @pytest.mark.parametrize("late", [True, False])
    def test_with_the_next_they_are_two_draws(self, late):
        losses = [self.kept, self.model(self.other).sum()]
        for loss in reversed(losses) if late else losses:
            loss.backward()
        assert counts(self.model) == of(self.x, self.other)
        self.optimizer.step()
        ((release, count),) = self.engine.accountant.history
        assert (release.draws, count) == (2, 1)

    def test_alone_they_are_their_own_draw(self):
        self.kept.backward()
        self.optimizer.step()
        assert counts(self.model) == of(self.x)
        self.optimizer.zero_grad()
        self.model(self.other).sum().backward()  # which nothing was released of
        self.optimizer.step()
        assert counts(self.model) == of(self.other)
        ((release, count),) = self.engine.accountant.history
        assert (release.draws, count) == (1, 2)

    def test_rows_of_theirs_that_were_seen_in_this_step(self):
        run = make(6)
        batches, model = iter(run[3]), run[1]
        (x,) = next(batches)
        kept, other = model(x[:2]).sum(), model(x[1:3]).sum()
        (later,) = next(batches)
        kept.backward()
        model(later).sum().backward()
        with pytest.raises(SamplingError, match="differentiated already"):
            other.backward()

    def test_of_a_batch_that_was_released(self):
        again = self.model(self.other[:2]).sum()
        self.model(self.other).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        next(iter(self.loader))
        again.backward()
        with pytest.raises(SamplingError, match="was released already"):
            self.optimizer.step()
        assert self.engine.accountant.steps == 1

    def test_of_no_draw_at_all(self):
        _, model, optimizer, loader = make()
        kept = model(torch.eye(RECORDS)[:3]).sum()
        next(iter(loader))
        kept.backward()
        with pytest.raises(SamplingError, match="nothing was drawn from the private loader"):
            optimizer.step()


@pytest.mark.filterwarnings("ignore:The loop was left in the middle of a logical batch:RuntimeWarning")
def test_two_pieces_of_a_batch_are_never_one_pass():
    """Rows are matched by their place: records of two pieces would be clipped as one, and each count twice."""
    _, model, optimizer, loader = make(6)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=3, optimizer=optimizer) as pieces:
        batches = iter(pieces)
        (x,) = next(batches)
        model(torch.zeros(0, RECORDS)).sum().backward()  # the piece counts as trained on
        kept = model(x).sum()
        (other,) = next(batches)
        assert len(x) == len(other)
        with pytest.raises(SecondBackwardError, match="pieces of one batch"):
            (kept + model(other).sum()).backward()


@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("next_one", [True, False])
def test_weights_that_move_between_two_backwards_without_a_step(clear, next_one):
    """Sharpness-aware minimization by hand: the second gradient is taken where the first, without noise, led."""
    _, model, optimizer, loader = make()
    (x,) = next(batches := iter(loader))
    model(x).sum().backward()
    with torch.no_grad():
        model.weight.add_(model.weight.grad)
    if clear:
        optimizer.zero_grad()
    if next_one:
        (x,) = next(batches)
    with pytest.raises((PrivacyError, SamplingError), match="weights were changed|differentiated"):
        model(x.clone()).sum().backward()


def test_weights_may_move_after_every_step_also_of_a_piece():
    _, model, optimizer, loader = make()
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer) as pieces:
        for (x,) in pieces:
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight.mul_(0.9).clamp_(-1.0, 1.0)
    assert float(model.weight.detach().abs().sum()) > 0
