"""The default noise is standard normal, and its parts are independent. Entropy is real: no seed fixes these draws.

Each bound is 6.5 standard deviations of a mean of more than 10⁵ independent terms: false alarms under 1e-9 in all.
"""

import pytest
import torch

from tacit.mechanisms import NoiseSource, add_gaussian_noise
from tacit.mechanisms.noise import LARGE

CPU = torch.device("cpu")
BOUND = 6.5


@pytest.mark.parametrize("shape", [(LARGE // 2,), (4 * LARGE,), (3, LARGE + 1)])
def test_moments(shape):
    source = NoiseSource()
    drawn = torch.cat([source.normal(torch.Size(shape), CPU).flatten() for _ in range(4)]).double()
    n = drawn.numel()
    assert abs(float(drawn.mean())) < BOUND / n**0.5
    assert abs(float(drawn.square().mean()) - 1) < BOUND * (2 / n) ** 0.5
    assert abs(float(drawn.pow(4).mean()) - 3) < BOUND * (96 / n) ** 0.5


def test_halves_calls_and_sources_are_independent():
    source, other = NoiseSource(), NoiseSource()
    size = torch.Size((4 * LARGE,))
    first, second, third = (s.normal(size, CPU).double() for s in (source, source, other))
    half = size[0] // 2
    for a, b in ((first[:half], first[half:]), (first, second), (first, third)):
        assert abs(float((a * b).mean())) < BOUND / len(a) ** 0.5


def test_a_given_generator_is_the_only_source():
    a, b = (NoiseSource(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.normal(torch.Size((2 * LARGE,)), CPU), b.normal(torch.Size((2 * LARGE,)), CPU))
    state = a.state_dict()
    first = a.normal(torch.Size((5,)), CPU)
    a.load_state_dict(state)
    assert torch.equal(first, a.normal(torch.Size((5,)), CPU))
    assert NoiseSource().state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_added_before_the_division(dtype):
    total = torch.full((3, 4), 8.0, dtype=dtype)
    quiet = add_gaussian_noise(total, std=0.0, divisor=4.0, noise=NoiseSource())
    assert torch.equal(quiet, torch.full((3, 4), 2.0, dtype=dtype))
    noise = NoiseSource(torch.Generator().manual_seed(0))
    drawn = NoiseSource(torch.Generator().manual_seed(0)).normal(total.shape, CPU)
    released = add_gaussian_noise(total, std=0.5, divisor=4.0, noise=noise)
    torch.testing.assert_close(
        released, ((8.0 + 0.5 * drawn.to(torch.promote_types(dtype, torch.float32))) / 4).to(dtype)
    )
    assert float(total[0, 0]) == 8.0
