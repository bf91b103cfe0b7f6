"""Grouped releases cost at least, or at most, as much as the ones they stand for."""

import pytest

from tacit.accounting import PoissonRelease
from tacit.accounting.grouping import grouped


@pytest.mark.parametrize("upper", [True, False])
def test_every_release_has_one_that_is_no_better_or_no_worse(upper: bool) -> None:
    sampled = {PoissonRelease(1 + n / 50, 0.01 * (1 + n / 60), 1 + n % 2): n + 1 for n in range(80)}
    found = grouped(sampled, 32, upper=upper)
    assert len(found) <= 32
    assert sum(found.values()) == sum(sampled.values())
    sign = 1 if upper else -1
    for release in sampled:
        assert any(
            sign * (release.noise_multiplier - other.noise_multiplier) >= 0
            and sign * (other.sample_rate - release.sample_rate) >= 0
            and other.draws == release.draws
            for other in found
        )


def test_few_stay_as_they_are() -> None:
    sampled = {PoissonRelease(1.0, 0.1): 3, PoissonRelease(1.0 + 1e-12, 0.1): 4}
    assert grouped(sampled, 2, upper=True) is sampled
