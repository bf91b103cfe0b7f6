"""What processes release that each hold a shard of the parameters is what one process would release."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from language import in_type
from processes import results
from scenarios import BOUND, Case, collectives, data, last_dimension, model_of
from test_exactness import ACROSS, ALONG, compare
from torch.distributed.fsdp import CPUOffloadPolicy


def test_models_modes_and_accumulation():
    cases = [
        Case(wrap="shard", model=model, mode=mode, pieces=pieces)
        for model, mode, pieces in product(("mlp", "conv"), ("auto", "ghost"), ("whole", "no_sync", "manager"))
    ]
    compare(2, cases)


def test_one_process():
    compare(1, [Case(wrap="shard"), Case(wrap="shard", model="conv", mode="ghost", pieces="no_sync")])


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
        Case(wrap="shard", model="even"),
        Case(wrap="shard", model="even", nested=False, shard={"shard_placement_fn": last_dimension}),
        Case(wrap="shard", model="even", mode="ghost", shard={"shard_placement_fn": last_dimension}, pieces="manager"),
        Case(wrap="shard", model="lent", shard=freed),
        Case(wrap="shard", model="lent", mode="ghost", shard=kept),
        Case(wrap="shard", mode="hooks"),
        Case(wrap="shard", reduction="sum", sampling="epochs"),
        Case(wrap="shard", to_none=False, epochs=2),
        Case(wrap="shard", clipping="per_layer", pieces="no_sync"),
        Case(wrap="shard", clipping="per_layer", mode="ghost"),
        Case(wrap="shard", clipping="grouped", bounds=ACROSS, pieces="no_sync"),
        Case(wrap="shard", clipping="grouped", bounds=ALONG, shard=freed, pieces="manager"),
        Case(wrap="shard", clipping="grouped", bounds=ACROSS, mode="ghost", shard=kept),
        Case(wrap="shard", clipping="grouped", bounds=ALONG, mode="hooks", model="conv", nested=False),
        Case(wrap="shard", clipping="grouped", bounds={"net.*": 0.2, "*": 0.1}, model="checkpointed", shard=freed),
        Case(wrap="shard", model="checkpointed", shard=freed, pieces="no_sync"),
        Case(wrap="shard", model="checkpointed", mode="ghost"),
        Case(wrap="shard", model="reentrant"),
        Case(wrap="shard", shard={"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
    ]
    compare(2, cases)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_language_models():
    """Tied weights, adapters on a frozen base, recomputed blocks, and parameters of no block."""
    freed = {"reshard_after_forward": True}
    cases = [
        Case(wrap="shard", batch=5, model="gpt2"),
        Case(wrap="shard", batch=5, model="gpt2 recomputed", mode="ghost", pieces="manager"),
        Case(wrap="shard", batch=5, model="gpt2 reentrant", nested=False),
        Case(wrap="shard", batch=5, model="llama adapted", clipping="per_layer", shard=freed),
        Case(wrap="shard", batch=5, model="gpt2", clipping="grouped", bounds={"*.wte.*": 0.1, "*": 0.2}, shard=freed),
    ]
    compare(2, cases)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("kind", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_sums_are_float32_whatever_modules_run_in(world, kind, within):
    found = results(world, in_type, kind)
    for parts in zip(*found, strict=True):
        _, before, sums, types = parts[0]
        assert types
        x, y, _ = data(30)[torch.tensor([row for part in parts for row in part[0]])]
        model = model_of("mlp").float()
        model.load_state_dict(before)
        model.to(kind)
        expected = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in model.named_parameters()}
        for one, label in zip(x.to(kind), y, strict=True):
            gradients = torch.autograd.grad(F.cross_entropy(model(one[None]).float(), label[None]), model.parameters())
            norm = torch.stack([g.float().square().sum() for g in gradients]).sum().sqrt()
            for total, gradient in zip(expected.values(), gradients, strict=True):
                total += gradient.float() * (BOUND / 10 / norm).clamp(max=1.0)
        whole, seen = (torch.cat([one[name].flatten() for name in sums]) for one in (expected, sums))
        assert float((whole - seen).norm() / whole.norm()) < within
        if world == 1:  # the bound is kept as exactly as float32 can
            assert float(seen.norm()) == pytest.approx(BOUND / 10, rel=1e-6)


def test_experts_that_only_some_processes_use():
    """What a process settles early must not depend on its rows: others would add another parameter's sum to it."""
    settings = (("auto", "flat"), ("ghost", "flat"), ("auto", "per_layer"), ("ghost", "per_layer"))
    cases = [Case(wrap="shard", model="routed", nested=False, batch=2, mode=m, clipping=c) for m, c in settings]
    experts = {"experts.*": 0.02, "*": 0.1}
    compare(2, [*cases, *(replace(c, clipping="grouped", bounds=experts) for c in cases[:2])])


def test_replicas():
    """HSDP, and parameters of fewer rows than there are processes."""
    cases = [
        Case(wrap="shard", batch=2, replicas=2),
        Case(wrap="shard", batch=2, replicas=2, mode="ghost", pieces="manager"),
        Case(wrap="shard", batch=2, replicas=2, model="conv", shard={"reshard_after_forward": False}),
        Case(wrap="shard", batch=2, replicas=2, model="checkpointed", clipping="per_layer"),
        Case(wrap="shard", batch=2, replicas=2, clipping="grouped", bounds=ACROSS, mode="ghost"),
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
