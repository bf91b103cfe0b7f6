"""One noise for all processes: the same in each, of the size that one process would add."""

import math

import torch
from processes import results
from scenarios import noise

ONCE_IN_A_MILLION = 4.9
"""Deviations that a normal number passes with a probability of 1e-6."""


def test_noise_is_the_same_in_all_processes_and_of_the_right_size():
    (mine, std), (other, _) = results(2, noise, 100)
    assert torch.equal(mine, other)
    count = mine.numel()
    # The variance of n squares of normal numbers is 2 / n of their mean's square.
    assert abs(float(mine.square().mean()) / std**2 - 1) < ONCE_IN_A_MILLION * math.sqrt(2 / count) + 2**-10
    assert abs(float(mine.mean())) < ONCE_IN_A_MILLION * std / math.sqrt(count)
    between_steps = float((mine[1:] * mine[:-1]).mean()) / std**2
    between_coordinates = float((mine[:, 1:] * mine[:, :-1]).mean()) / std**2
    assert max(abs(between_steps), abs(between_coordinates)) < ONCE_IN_A_MILLION / math.sqrt(mine[1:].numel())


def test_each_run_has_a_key_of_its_own():
    first, second = results(2, noise, 1)[0], results(2, noise, 1)[0]
    assert not torch.equal(first[0], second[0])
