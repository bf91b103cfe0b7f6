"""Flat clipping keeps its bound for any norms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.clipping import FlatClipping, create_policy
from tacit.errors import ConfigurationError

NORMS = st.lists(st.floats(0, 1e30), min_size=1, max_size=5)


@given(NORMS, st.floats(1e-6, 1e6))
def test_no_sample_contributes_more_than_the_bound(norms, bound):
    policy = FlatClipping(bound)
    parts = torch.tensor(norms, dtype=torch.float64).unsqueeze(1)  # one sample, several parameters
    factors = policy.factors(parts, [str(i) for i in range(len(norms))])
    contribution = float(torch.linalg.vector_norm(parts * factors))
    assert contribution <= policy.sensitivity * (1 + 1e-12)
    assert len(set(factors.flatten().tolist())) == 1  # the direction is kept
    if math.hypot(*norms) <= bound:
        assert float(factors[0]) == 1.0


def test_policies_by_name():
    assert create_policy("flat", 2.0) == FlatClipping(2.0)
    with pytest.raises(ConfigurationError, match="'flat'"):
        create_policy("adaptive", 1.0)
