"""Clipping by groups keeps the bound of each, and so the sensitivity of all."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.clipping import GroupedClipping, create_policy
from tacit.errors import ConfigurationError

NAMES = ("embed.weight", "block.0.weight", "block.0.bias", "head.weight", "scale")
NORMS = st.lists(st.floats(0, 1e30), min_size=len(NAMES), max_size=len(NAMES))


@given(NORMS, st.floats(1e-6, 1e6), st.sampled_from(["per_layer", "grouped"]))
def test_no_sample_contributes_more_than_the_bound(norms, bound, clipping):
    bounds = bound if clipping == "per_layer" else {"block.*": bound, "*.weight": 2 * bound, "*": 3 * bound}
    policy = create_policy(clipping, bounds, NAMES)
    parts = torch.tensor(norms, dtype=torch.float64).unsqueeze(1)
    factors = policy.factors(parts, NAMES)
    contribution = float(torch.linalg.vector_norm(parts * factors))
    assert contribution <= policy.sensitivity * (1 + 1e-12)
    assert float(factors.max()) <= 1


def test_layers_share_the_bound_out():
    policy = create_policy("per_layer", 2.0, NAMES)
    assert isinstance(policy, GroupedClipping)
    assert policy.bounds == dict.fromkeys(["embed", "block.0", "head", ""], 1.0)
    assert policy.sensitivity == pytest.approx(2.0, rel=1e-15)
    assert policy.group("block.0.weight") == policy.group("block.0.bias")
    norms = torch.tensor([[3.0], [0.3], [0.4], [0.5], [10.0]], dtype=torch.float64)
    assert policy.factors(norms, NAMES).flatten().tolist() == pytest.approx([1 / 3, 1, 1, 1, 0.1])


def test_a_group_alone_gets_the_same_factors():
    policy = create_policy("per_layer", 0.1, NAMES)
    norms = torch.rand(len(NAMES), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = policy.factors(norms, NAMES)
    assert torch.equal(whole[1:3], policy.factors(norms[1:3], NAMES[1:3]))


def test_patterns_make_groups():
    policy = create_policy("grouped", {"block.*": 3.0, "*": 4.0}, NAMES)
    assert policy.sensitivity == pytest.approx(math.hypot(3, 4))
    assert [policy.group(name) for name in NAMES] == ["*", "block.*", "block.*", "*", "*"]


def test_bounds_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match=r"no bound for the parameter 'embed.weight'"):
        create_policy("grouped", {"block.*": 1.0}, NAMES)
    with pytest.raises(ConfigurationError, match=r"'blok.\*', which fits no private parameter"):
        create_policy("grouped", {"blok.*": 1.0, "*": 1.0}, NAMES)
    with pytest.raises(ConfigurationError, match="one bound for each pattern"):
        create_policy("grouped", 1.0, NAMES)
    with pytest.raises(ConfigurationError, match="clipping='grouped'"):
        create_policy("per_layer", {"*": 1.0}, NAMES)


def test_a_parameter_that_was_frozen_has_no_bound():
    with pytest.raises(ConfigurationError, match="was frozen"):
        create_policy("per_layer", 1.0, NAMES[:2]).group("head.weight")
