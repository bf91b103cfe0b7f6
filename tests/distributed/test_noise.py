"""One noise for all processes: the same in each, of the size that one process would add."""

import math

import pytest
import torch
from processes import results
from scenarios import BOUND, Case, data, left_over, noise, noise_on_gradients
from torch import nn

from tacit.checking.reference import single_sample_loop

ONCE_IN_A_MILLION = 4.9
"""Deviations that a normal number passes with a probability of 1e-6."""


def test_noise_is_the_same_in_all_processes_and_of_the_right_size():
    (mine, std, _), (other, _, _) = results(2, noise, 100)
    assert torch.equal(mine, other)
    count = mine.numel()
    # The variance of n squares of normal numbers is 2 / n of their mean's square.
    assert abs(float(mine.square().mean()) / std**2 - 1) < ONCE_IN_A_MILLION * math.sqrt(2 / count) + 2**-10
    assert abs(float(mine.mean())) < ONCE_IN_A_MILLION * std / math.sqrt(count)
    between_steps = float((mine[1:] * mine[:-1]).mean()) / std**2
    between_coordinates = float((mine[:, 1:] * mine[:, :-1]).mean()) / std**2
    assert max(abs(between_steps), abs(between_coordinates)) < ONCE_IN_A_MILLION / math.sqrt(mine[1:].numel())


def test_over_two_thousand_steps_noise_around_the_clipped_sum_has_its_variance():
    """Two processes' parts, one noise: σ² C² over all numbers of all steps, and the clipped sum in the middle."""
    steps, records = 2000, 8
    (released, std), (other, _) = results(2, noise_on_gradients, steps, timeout=60.0)
    assert torch.equal(released, other)
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    x, y, _ = data(records).tensors
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    sums = single_sample_loop(model, loss, (x, y), max_grad_norm=BOUND).sums
    clean = torch.cat([value.flatten() for value in sums.values()]) / records
    assert float(clean.norm()) > std  # it is there at all
    own = released - clean
    count = own.numel()
    # A false alarm of both together: 5.2 deviations 2e-7, 5.6 for each of 21 numbers 5e-7.
    assert abs(float(own.square().mean()) / std**2 - 1) < 5.2 * math.sqrt(2 / count) + 2**-10
    assert float(own.mean(0).abs().max()) < 5.6 * std / math.sqrt(steps)


@pytest.mark.parametrize("ddp", [{}, {"gradient_as_bucket_view": True}, {"bucket_cap_mb": 1e-4}])
def test_no_bucket_keeps_the_sum_without_noise_after_the_step(ddp):
    for steps in results(2, left_over, ddp):
        assert len(steps) == 4
        for before, after in steps:
            assert before > 0.9  # they were there
            assert after == 0


def test_each_run_has_a_key_of_its_own():
    first, second = results(2, noise, 1)[0], results(2, noise, 1)[0]
    assert not torch.equal(first[0], second[0])


SURE = 5.5
"""Deviations that a normal number passes with a probability of 4e-8: of ten such checks one fails once in 2.6e6."""


def test_shards_have_noise_of_their_own_and_replicas_the_same():
    """Four processes, two shards of 25 rows: 13 and 12. What is checked of each is also checked of the whole."""
    found = results(4, noise, 40, Case(wrap="shard", replicas=2))
    whole, std, _ = found[0]
    held = [one[2] for one in found]
    assert all(torch.equal(one[0], whole) for one in found)
    assert torch.equal(held[0], held[2])
    assert torch.equal(held[1], held[3])
    assert held[0].shape[1] == 13 * 41
    assert held[1].shape[1] == 12 * 41
    for numbers in (whole, held[0], held[1]):
        count = numbers.numel()
        assert abs(float(numbers.square().mean()) / std**2 - 1) < SURE * math.sqrt(2 / count) + 2**-10
        assert abs(float(numbers.mean())) < SURE * std / math.sqrt(count)
        assert abs(float((numbers[1:] * numbers[:-1]).mean()) / std**2) < SURE / math.sqrt(numbers[1:].numel())
    size = held[1].shape[1]
    assert abs(float((held[0][:, :size] * held[1]).mean()) / std**2) < SURE / math.sqrt(40 * size)


def test_one_process_that_holds_all_makes_all_noise():
    (whole, std, held), *_ = results(1, noise, 20, Case(wrap="shard"))
    assert torch.equal(whole, held)
    assert abs(float(whole.square().mean()) / std**2 - 1) < SURE * math.sqrt(2 / whole.numel()) + 2**-10
