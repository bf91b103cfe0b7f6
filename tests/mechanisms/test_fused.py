"""Numba's kernel, against NumPy's functions and against torch's passes. Entropy is real but where words are given."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tacit.errors import ConfigurationError
from tacit.mechanisms import NoiseSource, add_gaussian_noise, fused, noise, secure
from tacit.mechanisms.fused import FROM, Rounding, compiled, kernel, maker
from tacit.mechanisms.gaussian import grid_of
from tacit.mechanisms.rounding import ROUNDING
from tacit.mechanisms.secure import Job, SecureNormal

pytest.importorskip("numba")
release = kernel()


def noise_of(words, deviation=1.0):
    """The kernel's numbers in units far smaller than they are, so that rounding shows nothing."""
    values = np.zeros(words.size)
    release(words.reshape(-1), values, deviation * 2.0**60, 0.0, 2.0**-60)
    return values.reshape(2, -1)


def test_the_transform_is_exact_to_the_last_bits():
    first, second = words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (2, 300_001))
    u = (np.abs(first.astype(np.float64)) + 0.5) * 2.0**-63
    angle = (second << 2).astype(np.float64) * 2.0**-63 * np.pi / 4
    angle = np.where((second >> 62) & 1, np.pi / 2 - angle, angle) + np.where(second < 0, np.pi, 0)
    radius = np.sqrt(-2 * np.log(u))
    found = noise_of(words, 2.0) / 2
    assert np.abs(found[0] - radius * np.cos(angle)).max() < 1e-14
    assert np.abs(found[1] - radius * np.sin(angle)).max() < 1e-14


def test_radii_at_the_ends():
    """The smallest word is 9.4 deviations out; the largest are at 0, and no number is NaN."""
    first = np.array([0, -1, 1, 2**63 - 1, -(2**63), 2**62])
    found = noise_of(np.stack([first, np.zeros_like(first)]))
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx((2 * 64 * np.log(2)) ** 0.5, rel=1e-15)
    assert found[0, 1] == found[0, 2] < found[0, 0]
    assert not found[0, 3:5].any()
    assert found[0, 5] == pytest.approx((2 * np.log(2)) ** 0.5, rel=1e-15)


def test_the_angle_goes_round_once():
    second = np.array([place * 2**60 + 2**59 for place in range(-8, 8)])
    found = noise_of(np.stack([np.full_like(second, 2**62), second])) / (2 * np.log(2)) ** 0.5
    assert np.abs(np.hypot(*found) - 1).max() < 1e-14
    assert np.sort(np.arctan2(found[1], found[0])) == pytest.approx(np.arange(-15, 17, 2) * np.pi / 16, abs=1e-14)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000, 1001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_rounded_and_scaled(count, dtype):
    rng = np.random.default_rng(count)
    words = rng.integers(-(2**63), 2**63 - 1, 2 * ((count + 1) // 2))
    sums = rng.normal(size=count).astype(dtype)
    values, alone = sums.copy(), np.zeros(count)
    release(words, values, 300.0, 4096.0, 0.125)
    release(words, alone, 300.0 * 2.0**40, 0.0, 2.0**-40)
    expected = (np.rint(sums.astype(np.float64) * 4096 + alone) * 0.125).astype(dtype)
    assert (values == expected).all()
    assert len(set(alone)) == count


KEY = bytes(range(16))


def keyed(values):
    job = Job(len(values), Rounding(values, into=4096.0, back=1 / 4096), 4096.0)
    source = SecureNormal(KEY)
    source.each([job])
    return values, source.next_block


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kernel_is_asked_for_much_noise_only(dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(secure, "kernel", lambda: lambda *_: asked.append(1))
    monkeypatch.setattr(secure, "can_make", lambda *_: False)
    for count in (FROM - 1, FROM):
        values = torch.zeros(count, dtype=dtype)
        SecureNormal().each([Job(count, Rounding(values, 1.0, 1.0))])
        wanted = count == FROM and dtype != torch.bfloat16
        assert bool(asked) is wanted
        assert bool(values.any()) is not wanted


def test_without_numba_torch_makes_as_many_numbers_of_the_same_distribution(monkeypatch):
    made, blocks = keyed(torch.zeros(FROM))
    monkeypatch.setattr(secure, "kernel", lambda: None)
    passes, same = keyed(torch.zeros(FROM))
    assert blocks == same
    # Radii are the same, and angles are turned.
    norms = [values.split(2 * secure.KEYED_PAIRS)[0].view(2, -1).norm(dim=0) for values in (made, passes)]
    torch.testing.assert_close(*norms, rtol=0, atol=3e-4)
    assert not torch.equal(made, passes)


@pytest.mark.parametrize("source", [NoiseSource, lambda: NoiseSource(key=bytes(32))])
def test_what_is_released_is_normal_on_the_grid(source):
    """P(√n D > 4.2) ≤ 2 exp(−2 · 4.2²) = 1e-15 (Massart 1990, doi:10.1214/aop/1176990746), and the grid's width."""
    count, std = 2**21 + 5, 0.7
    (released,) = add_gaussian_noise(
        [torch.full((count,), 3.0, dtype=torch.float64)], std=std, divisor=1.0, noise=source()
    )
    steps = released / grid_of(std)
    assert torch.equal(steps, steps.round())
    drawn = ((released - 3.0) / (std * (1 + ROUNDING))).sort().values
    expected = torch.special.ndtr(drawn)
    above = torch.arange(1, count + 1, dtype=torch.float64) / count - expected
    assert max(float(above.max()), float((1 / count - above).max())) * count**0.5 < 4.2 + 2**-12 * count**0.5
    assert not torch.isclose(released[: count // 2].double(), released[-(count // 2) :].double()).all()


def test_the_maker_is_named():
    assert maker().startswith("Numba ") is (kernel() is not None)


@pytest.mark.parametrize("count", [FROM - 1, FROM])
def test_it_is_compiled_before_the_first_step_for_large_models_only(count, monkeypatch):
    asked = []
    monkeypatch.setattr(noise, "compiled", lambda: asked.append(1))
    for source in (NoiseSource(), NoiseSource(key=bytes(32)), NoiseSource(torch.Generator())):
        source.prepare([torch.zeros(7), torch.zeros(count - 7), torch.zeros(count, device="meta")])
    assert len(asked) == (3 if count == FROM else 0)


def test_compiling_is_over_when_it_returns():
    assert compiled() is release
    assert len(release.signatures) >= 1


@pytest.fixture
def anew():
    """What was found out about Numba is forgotten, before and after."""
    for each in (kernel, compiled):
        each.cache_clear()
    yield
    for each in (kernel, compiled):
        each.cache_clear()


@pytest.mark.usefixtures("anew")
def test_a_kernel_that_is_not_compiled_is_none(monkeypatch):
    """As plain Python it would take minutes for each step, and round other than the one of other processes."""
    monkeypatch.setattr("tacit.mechanisms.fused_kernel.release", release.py_func)  # what NUMBA_DISABLE_JIT=1 leaves
    assert kernel() is None
    assert compiled() is None
    assert maker() == "torch"


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("error", [ImportError, AttributeError, OSError])
def test_a_numba_that_cannot_be_imported_is_none(error, monkeypatch):
    def broken(*_, **__):
        raise error("no such library")

    monkeypatch.delitem(sys.modules, "tacit.mechanisms.fused_kernel")
    monkeypatch.setattr("numba.njit", broken)
    with nullcontext() if error is ImportError else pytest.warns(UserWarning, match="no such library"):
        assert kernel() is None
    assert maker() == "torch"


@pytest.mark.usefixtures("anew")
def test_a_kernel_that_cannot_be_compiled_is_an_error_in_words(monkeypatch):
    def fails(*_):
        raise RuntimeError("unknown processor")

    monkeypatch.setattr(fused, "kernel", lambda: fails)
    with pytest.raises(ConfigurationError, match="unknown processor.*NUMBA_DISABLE_JIT=1"):
        compiled()
