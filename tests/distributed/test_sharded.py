"""What processes release that each hold a shard of the parameters is what one process would release."""

from itertools import product

import pytest
from processes import results
from scenarios import Case, collectives
from test_exactness import compare


@pytest.mark.parametrize("world", [1, 2])
def test_models_modes_and_accumulation(world):
    cases = [
        Case(wrap="shard", model=model, mode=mode, pieces=pieces)
        for model, mode, pieces in product(("mlp", "conv"), ("auto", "ghost"), ("whole", "no_sync", "manager"))
    ]
    compare(world, cases)


def test_ways_of_sharding():
    kept, freed = {"reshard_after_forward": False}, {"reshard_after_forward": True}
    cases = [
        Case(wrap="shard", nested=False),
        Case(wrap="shard", nested=False, shard=freed, pieces="manager"),
        Case(wrap="shard", shard=kept),
        Case(wrap="shard", shard=kept, mode="ghost", pieces="no_sync"),
        Case(wrap="shard", shard=freed, pieces="synced"),
        Case(wrap="shard", model="unused"),
        Case(wrap="shard", model="unused", mode="ghost", nested=False),
        Case(wrap="shard", mode="hooks"),
        Case(wrap="shard", reduction="sum", sampling="epochs"),
        Case(wrap="shard", to_none=False, epochs=2),
        Case(wrap="shard", clipping="per_layer", pieces="no_sync"),
        Case(wrap="shard", clipping="per_layer", mode="ghost"),
        Case(wrap="shard", model="checkpointed", shard=freed, pieces="no_sync"),
        Case(wrap="shard", model="checkpointed", mode="ghost"),
        Case(wrap="shard", model="reentrant"),
    ]
    compare(2, cases)


def test_replicas():
    """HSDP, and parameters of fewer rows than there are processes."""
    cases = [
        Case(wrap="shard", batch=2, replicas=2),
        Case(wrap="shard", batch=2, replicas=2, mode="ghost", pieces="manager"),
        Case(wrap="shard", batch=2, replicas=2, model="conv", shard={"reshard_after_forward": False}),
        Case(wrap="shard", batch=2, replicas=2, model="checkpointed", clipping="per_layer"),
        Case(wrap="shard", batch=2),
        Case(wrap="shard", batch=2, model="conv", pieces="no_sync", shard={"reshard_after_forward": 2}),
        Case(wrap="shard", batch=2, model="unused", mode="ghost", pieces="manager", nested=False),
    ]
    compare(4, cases)


def test_empty_parts():
    cases = [Case(wrap="shard", records=12, batch=1, epochs=3, mode=mode) for mode in ("auto", "ghost", "hooks")]
    cases.append(Case(wrap="shard", records=12, batch=1, epochs=3, pieces="no_sync", nested=False))
    found = compare(2, cases)
    sizes = [[len(step[0]) for step in one[0][0]] for one in found]
    assert all(0 in own for own in sizes)
    assert any(a > 0 for a, b in zip(*sizes, strict=True) if b == 0)


def test_the_number_of_collectives_does_not_depend_on_the_data():
    (first, sizes), (second, other_sizes) = results(2, collectives, Case(wrap="shard", records=12, batch=1, epochs=3))
    assert first == second
    assert sizes != other_sizes
