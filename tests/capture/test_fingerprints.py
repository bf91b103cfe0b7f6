"""Fingerprints: what they see of large gradients, of which most is 0."""

import pytest
import torch

from tacit.capture import LeakGuard
from tacit.capture.fingerprints import (
    are_alike,
    fingerprint,
    fingerprints,
    first_difference,
    looked_at,
    numbers,
    sum_fingerprint,
)
from tacit.errors import PrivacyError

LARGE = (512, 64)
"""So large that it is looked at in part: at every fifth number."""


def alone(place: int) -> torch.Tensor:
    gradient = torch.zeros(LARGE)
    gradient.view(-1)[place] = 0.5
    return gradient


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 64, 32767])
def test_no_place_is_out_of_sight(place):
    assert float(fingerprint(alone(place))) == 0.5
    assert float(fingerprint(alone(place), times=8.0)) == 4.0
    assert float(sum_fingerprint(alone(place), alone(place), alone(place))) == 1.0
    assert float(sum_fingerprint(alone(place), alone(place), -alone(place))) == 0.0


def test_a_part_is_enough_where_it_is_not_zero():
    full = torch.ones(LARGE)
    (seen,) = looked_at(full.view(-1))
    assert seen.numel() < full.numel() / 4
    assert float(fingerprint(full * 4)) == 4 * float(fingerprint(full))
    columns = torch.zeros(512, 64)
    columns[:, 5] = 1.0
    (seen,) = looked_at(columns.view(-1))  # an odd step goes through all columns
    assert 0 < float(seen.sum()) < 512


@pytest.mark.parametrize("shape", [(), (0,), (5,), LARGE, (3000, 3000)])
def test_the_fingerprint_of_a_sum_is_that_of_what_was_added_up(shape):
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(shape, generator=generator) for _ in range(2))
    due = sum_fingerprint(one, one, None, other.t().contiguous().t() if other.dim() == 2 else other)
    assert first_difference([("weight", due, fingerprint(one + other))]) is None
    if one.numel():
        assert first_difference([("weight", due, fingerprint((one + other) * 1.001))]) == "weight"


def test_what_is_not_contiguous_is_looked_at_whole():
    assert float(fingerprint(alone(2).t())) == 0.5


@pytest.mark.parametrize("place", [0, 2])
def test_what_was_multiplied_without_a_trace_is_refused(place):
    guard, gradient = LeakGuard(), alone(place)
    guard.accept("table", gradient)
    guard.check_untouched({"table": gradient})
    gradient.data.mul_(1000)
    with pytest.raises(PrivacyError, match="'table' was changed after its backward"):
        guard.check_untouched({"table": gradient})


class TestDivided:
    """A guard that is asked whether gradients were divided by 8."""

    def guard(self, **gradients: torch.Tensor) -> LeakGuard:
        guard = LeakGuard()
        for name, gradient in gradients.items():
            guard.accept(name, gradient)
        return guard

    def test_all_of_them(self):
        gradients = {"a": alone(2), "b": torch.ones(3)}
        guard = self.guard(**gradients)
        assert guard.divided(gradients, 8.0) == []
        gradients["a"].data.div_(8)
        assert guard.divided(gradients, 8.0) == []
        gradients["b"].data.div_(8)
        assert guard.divided(gradients, 8.0) == ["a", "b"]

    def test_zeros_are_no_evidence(self):
        gradients = {"a": torch.zeros(4)}
        assert self.guard(**gradients).divided(gradients, 8.0) == []
        assert LeakGuard().divided({}, 8.0) == []

    def test_zeros_that_were_left_go_with_the_others_and_cleared_ones_do_not(self):
        gradients = {"zero": torch.zeros(4), "cleared": torch.ones(4), "quietly": torch.ones(4), "b": torch.ones(3)}
        guard = self.guard(**gradients)
        gradients["cleared"].zero_()
        gradients["quietly"].data.zero_()
        gradients["b"].data.div_(8)
        assert sorted(guard.divided(gradients, 8.0)) == ["b", "zero"]

    @pytest.mark.parametrize("value", [torch.inf, torch.nan])
    def test_what_is_not_finite_is_no_evidence(self, value):
        gradients = {"a": torch.full((4,), value)}
        guard = self.guard(**gradients)
        gradients["a"].data.div_(8)
        assert guard.divided(gradients, 8.0) == []


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("times", [1.0, 8.0])
def test_several_have_the_fingerprints_that_each_has_by_itself(count, times):
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (0,), (5,), (3, 4), LARGE] * count
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients[2][1], gradients[3][0] = 1e-30, 1e30  # float32 cannot square these
    found = fingerprints(gradients, times=times)
    assert all(are_alike(found, [fingerprint(gradient, times=times) for gradient in gradients]))


def test_what_is_not_finite_stays_by_itself():
    gradients = [torch.full((3,), value) for value in (1.0, float("nan"), 2.0, float("inf"))] * 5
    found = fingerprints(gradients)
    assert are_alike(found, [fingerprint(gradient) for gradient in gradients]) == [True] * 20
    assert are_alike(found[:4], [*found[1:4], found[0]]) == [False] * 4
    assert are_alike([found[0]], [found[3]]) == [False]  # whatever part of infinity it may be off


def test_numbers_of_fingerprints_of_several_kinds():
    few = fingerprints([torch.full((2,), float(n)) for n in range(20)])
    one = fingerprint(torch.tensor([3.0, 4.0]))
    assert all(isinstance(each, float) for each in few)
    assert numbers([few[1], one, few[0]]) == [pytest.approx(2**0.5), 5.0, 0.0]
    assert numbers(few) == few
    assert are_alike([one, 5.0], [5.0, one]) == [True, True]
    assert first_difference([("a", one, 5.0), ("b", 5.0, few[0])]) == "b"
