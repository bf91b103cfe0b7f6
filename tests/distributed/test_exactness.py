"""What several processes release is what one would release over the same batch."""

import math
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from processes import results
from scenarios import BOUND, Case, collectives, data, model_of, several, users

from tacit.checking.reference import single_sample_loop

ACROSS = {"*.weight": 0.2, "*": 0.1}  # groups of parameters of several modules, and of one
ALONG = {"[01].*": 0.2, "*": 0.1}


def reference(case: Case, weights: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The clipped sum over these records, by a loop over them."""
    model = model_of(case.model)
    weights = {name.replace("_checkpoint_wrapped_module.", ""): value for name, value in weights.items()}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys  # tied ones are named once
    records = data(case.records)
    if not rows:
        return {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    x, y, _ = records[torch.tensor(rows)]
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    if case.clipping == "grouped":
        return by_groups(
            [
                single_sample_loop(model, loss, (x[i, None], y[i, None]), max_grad_norm=math.inf).sums
                for i in range(len(x))
            ],
            case.bounds,
        )
    return single_sample_loop(model, loss, (x, y), max_grad_norm=BOUND, clipping=case.clipping).sums


def by_groups(samples: list[Any], bounds: dict[str, float]) -> dict[str, Any]:
    """The clipped sum of samples' gradients, of which each group of parameters has a bound of its own."""
    group_of = {name: next(pattern for pattern in bounds if fnmatchcase(name, pattern)) for name in samples[0]}
    assert set(group_of.values()) == bounds.keys()
    sums = {name: torch.zeros_like(value) for name, value in samples[0].items()}
    clipped = dict.fromkeys(bounds, 0)
    for sample in samples:
        for group, bound in bounds.items():
            names = [name for name in sums if group_of[name] == group]
            norm = float(torch.cat([sample[name].flatten() for name in names]).norm())
            clipped[group] += norm > bound
            for name in names:
                sums[name] += sample[name] * min(1.0, bound / max(norm, 1e-300))
    assert all(clipped.values())
    return sums


def check(case: Case, found: list[Any]) -> None:
    """The processes' parts are one batch, and each has released its clipped sum by the expected batch size."""
    world, steps = len(found), len(found[0][0])
    assert steps > 0
    expected = found[0][1]
    for number in range(steps):
        parts = [one[0][number][0] for one in found]
        rows = [row for part in parts for row in part]
        assert len(set(rows)) == len(rows)
        _, before, released = found[0][0][number]
        for one in found[1:]:
            assert all(torch.equal(value, before[name]) for name, value in one[0][number][1].items())
            assert all(torch.equal(value, released[name]) for name, value in one[0][number][2].items())
        divisor = expected if case.reduction == "mean" else 1.0
        within = {"rtol": 1e-5, "atol": 1e-7} if "llama" in case.model else {"rtol": 1e-9, "atol": 1e-12}
        expected_sums = reference(case, before, rows)
        assert released.keys() == expected_sums.keys()
        for name, total in expected_sums.items():  # Llama computes in float32 inside
            torch.testing.assert_close(released[name], total / divisor, **within)
    if case.sampling == "poisson":
        assert expected == pytest.approx(case.records / -(-case.records // (case.batch * world)))


def compare(world: int, cases: list[Case]) -> list[Any]:
    found = results(world, several, cases, timeout=60.0)
    for number, case in enumerate(cases):
        check(case, [one[number] for one in found])
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_models_modes_and_accumulation(world):
    cases = [
        Case(model=model, mode=mode, pieces=pieces)
        for model, mode, pieces in product(("mlp", "conv"), ("auto", "ghost"), ("whole", "no_sync", "manager"))
    ]
    compare(world, cases)


def test_four_processes():
    compare(4, [Case(batch=2), Case(batch=2, mode="ghost", pieces="manager", wrap="after")])


def test_ways_of_wrapping():
    cases = [
        Case(wrap="after"),
        Case(wrap="after", mode="ghost", pieces="no_sync"),
        Case(wrap="after", pieces="manager"),
        Case(pieces="synced"),
        Case(ddp={"static_graph": True}),
        Case(ddp={"static_graph": True}, wrap="after", pieces="manager"),
        Case(ddp={"find_unused_parameters": True}),
        Case(ddp={"find_unused_parameters": True}, mode="ghost"),
        Case(ddp={"gradient_as_bucket_view": True}),
        Case(ddp={"gradient_as_bucket_view": True}, pieces="manager", mode="ghost"),
        Case(ddp={"gradient_as_bucket_view": True, "static_graph": True}, pieces="synced"),
        Case(ddp={"bucket_cap_mb": 1e-4, "gradient_as_bucket_view": True}, epochs=2),
        Case(model="unused"),
        Case(model="unused", mode="ghost", ddp={"find_unused_parameters": True}),
        Case(mode="hooks"),
        Case(reduction="sum"),
        Case(sampling="epochs"),
        Case(sampling="truncated-poisson"),
        Case(to_none=False),
        Case(to_none=False, ddp={"gradient_as_bucket_view": True}, pieces="synced"),
        Case(clipping="per_layer"),
        Case(clipping="per_layer", mode="ghost", pieces="manager"),
        Case(clipping="grouped", bounds=ACROSS, pieces="no_sync"),
        Case(clipping="grouped", bounds=ALONG, mode="ghost", pieces="manager", wrap="after"),
        Case(clipping="grouped", bounds=ACROSS, mode="hooks", ddp={"static_graph": True}),
        Case(clipping="grouped", bounds=ALONG, model="conv", ddp={"gradient_as_bucket_view": True}, epochs=2),
        Case(model="checkpointed", pieces="no_sync"),
        Case(model="reentrant"),
        Case(model="checkpointed", ddp={"static_graph": True}),
        Case(mode="functorch"),
        Case(scale=16),
        Case(scale=-8, mode="ghost", pieces="no_sync", wrap="after"),
        Case(scale=16, pieces="manager", ddp={"gradient_as_bucket_view": True}, epochs=2),
        Case(scale=16, ddp={"static_graph": True}, clipping="per_layer"),
        Case(memory_budget=1, pieces="manager"),
        Case(memory_budget=1, ddp={"static_graph": True}),
        Case(memory_budget=1, ddp={"find_unused_parameters": True}, model="conv"),
    ]
    compare(2, cases)


def test_empty_parts():
    cases = [Case(records=12, batch=1, epochs=3, mode=mode) for mode in ("auto", "ghost", "hooks")]
    cases.append(Case(records=12, batch=1, epochs=3, pieces="no_sync", ddp={"find_unused_parameters": True}))
    found = compare(2, cases)
    sizes = [[len(step[0]) for step in one[0][0]] for one in found]
    assert all(0 in own for own in sizes)
    assert any(a > 0 for a, b in zip(*sizes, strict=True) if b == 0)


@pytest.mark.parametrize("case", [Case(records=12, batch=1, epochs=3), Case(records=20, batch=3, pieces="manager")])
def test_the_number_of_collectives_does_not_depend_on_the_data(case):
    found = results(2, collectives, case)
    (first, sizes), (second, other_sizes) = found
    assert first == second
    assert len({tuple(step) for step in first}) <= 2  # a piece that is held runs none
    assert sizes != other_sizes


def test_users_are_clipped_as_one_wherever_they_are():
    (first, expected), (second, _) = results(2, users)
    records, model = data(30), model_of("mlp")
    parameters = list(model.parameters())
    for (mine, before, released), (other, _, same) in zip(first, second, strict=True):
        assert not {row // 3 for row in mine} & {row // 3 for row in other}
        model.load_state_dict(before)
        totals = [torch.zeros_like(p) for p in parameters]
        for user in {row // 3 for row in mine + other}:
            x, y, _ = records[torch.tensor([row for row in mine + other if row // 3 == user])]
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            totals = [t + g * min(1.0, BOUND / float(norm)) for t, g in zip(totals, gradients, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(released, same, strict=True))
        torch.testing.assert_close(released, [t / expected for t in totals], rtol=1e-9, atol=1e-12)
