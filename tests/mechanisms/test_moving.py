"""Weights that a release moves, by torch and by Numba's kernel."""

import numpy as np
import pytest
import torch

from tacit.mechanisms import Move, NoiseSource, add_gaussian_noise, fused
from tacit.mechanisms.fused import FROM, kernel, moves_as_torch
from tacit.mechanisms.gaussian import SMALL

COUNTS = (SMALL, SMALL + 1, FROM, FROM + 3, 1)


def totals(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, generator=generator, dtype=dtype) for count in COUNTS]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("std", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_move_by_what_is_returned(dtype, std, given):
    """Also by numbers that lie ready, and by those of tensors that are made noisy side by side; None stays."""
    source = NoiseSource(torch.Generator().manual_seed(3)) if given else NoiseSource()
    weights, before = totals(dtype), totals(dtype)
    moves = [Move(each, 0.1 * (1 + place)) if place != 2 else None for place, each in enumerate(weights)]
    sums = [each.mul(3) for each in before]
    released = add_gaussian_noise(sums, std=std, divisor=7.0, noise=source, in_place=True, moves=moves)
    for place, (now, then, result) in enumerate(zip(weights, before, released, strict=True)):
        rate = 0.1 * (1 + place)
        assert torch.equal(now, then if place == 2 else then.add(result, alpha=-rate))
        assert not torch.equal(result, then.mul(3).div(7.0)) or std == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_released_does_not_depend_on_whether_weights_move(dtype):
    made = []
    for moving in (True, False):
        moves = [Move(each, 0.1) for each in totals(dtype)] if moving else ()
        source = NoiseSource(torch.Generator().manual_seed(3))
        made.append(add_gaussian_noise(totals(dtype), std=0.7, divisor=7.0, noise=source, moves=moves))
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_moves_as_torch(count, dtype):
    pytest.importorskip("numba")
    release = kernel()
    if not moves_as_torch(release, dtype):
        pytest.skip("the kernel rounds otherwise here, and is not asked to")
    generator = torch.Generator().manual_seed(count)
    values, weights = torch.randn((2, count), generator=generator, dtype=dtype)
    expected = weights.clone()
    words = np.random.default_rng(count).integers(-(2**63), 2**63 - 1, 2 * ((count + 1) // 2))
    release(words, values.numpy(), 300.0, 4096.0, 1 / 4096, *Move(weights, 0.3).for_kernel(slice(None)))
    assert torch.equal(weights, expected.add_(values, alpha=-0.3))


def test_a_kernel_that_rounds_otherwise_is_found_out():
    def rounds(words, values, deviation, into, back, weights, minus_rate):
        weights += (minus_rate * values).astype(weights.dtype)  # the product is rounded before it is added

    def once(words, values, deviation, into, back, weights, minus_rate):
        exact = weights.astype(np.longdouble) + np.longdouble(minus_rate) * values
        weights[:] = exact.astype(weights.dtype)

    assert [fused.moves_as_torch(each, torch.float32) for each in (rounds, once)].count(True) == 1


def test_weights_are_compiled_for_before_the_first_step(monkeypatch):
    asked = []
    monkeypatch.setattr("tacit.mechanisms.noise.compiled", lambda: "kernel")
    monkeypatch.setattr("tacit.mechanisms.noise.moves_as_torch", lambda *what: asked.append(what))
    monkeypatch.setattr("tacit.mechanisms.noise.goes", lambda moving: asked.append(moving))
    for moving in (False, True):
        NoiseSource().prepare([torch.zeros(FROM)], moving=moving)
    assert asked == [False, True, ("kernel", torch.float32)]
