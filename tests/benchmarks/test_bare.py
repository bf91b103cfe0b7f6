"""The bare step is the one that tacit takes, so that the two may be compared."""

import pytest
import torch
from benchmarks.contestants import BARE, contestants, quiet
from benchmarks.registry import BY_NAME

from tacit.uses import TUNER


def after_a_step(case, place):
    made = contestants(None, ("auto", BARE))[place](BY_NAME[case], 0.0, dict(BY_NAME[case].tiny))
    made.step(made.draw())
    return dict(made.model.named_parameters())


@pytest.mark.parametrize("form", ["gram", "stored"])
@pytest.mark.parametrize("case", ["mlp", "encoder", "convnet", "resnet", "embedding"])
def test_it_is_the_same_step(case, form):
    with quiet(), TUNER.forced(form):
        private, bare = (after_a_step(case, place) for place in (1, 2))
    assert private.keys() == bare.keys()
    for name, expected in private.items():
        torch.testing.assert_close(bare[name], expected, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(bare[name].grad, expected.grad, rtol=1e-4, atol=1e-8)
        assert bool(expected.grad.any())


def test_noise_is_there():
    with quiet():
        made = contestants(None, (BARE,))[1](BY_NAME["mlp"], 1e3, dict(BY_NAME["mlp"].tiny))
        made.step(made.draw())
    batch = 4
    noise = torch.cat([p.grad.flatten() for p in made.model.parameters()]) * batch
    # Of n ≥ 80 normal numbers the root mean square is within half of the deviation, but for less than 1 in 1e6.
    assert noise.numel() >= 80
    assert 500 < float(noise.square().mean().sqrt()) < 1500


@pytest.mark.parametrize("case", ["gpt2", "lstm"])
def test_what_it_does_not_know_it_takes_no_part_in(case):
    with quiet():
        assert contestants(None, (BARE,))[1](BY_NAME[case], 0.0, dict(BY_NAME[case].tiny)) is None
