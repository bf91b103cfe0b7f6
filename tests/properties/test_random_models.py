"""Random models, held to the loop over single samples, and to the bound under attack."""

import copy
import math
from typing import Any

import pytest
import torch
from generator import Program, build, programs
from hypothesis import HealthCheck, given, reject, seed, settings
from hypothesis import strategies as st
from tests.capture.compiled.private import attach, gradients
from tests.modes import MODES, mode_settings
from torch import nn

from tacit.capture.marks import map_tensors
from tacit.checking.reference import without_dropout
from tacit.errors import MemoryBudgetError
from tacit.testing import check_exactness, private_gradients, single_sample_loop

pytestmark = [
    pytest.mark.filterwarnings("ignore::tacit.errors.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
]
SHARDS = 4
EVERY_TIME = settings(
    max_examples=125,
    derandomize=False,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
BOUND = 0.5


def check(program: Program, mode: str, dtype: torch.dtype, tolerance: float) -> None:
    case = build(program, dtype)
    try:
        check_exactness(
            case.model,
            case.loss_fn,
            case.batch,
            **mode_settings(mode),
            loss_reduction=program.reduction,
            criterion=case.criterion,
            tolerance=tolerance,
        )
    except MemoryBudgetError:
        reject()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_models_equal_the_loop(shard: int) -> None:
    @seed(shard)
    @EVERY_TIME
    @given(program=programs(), mode=st.sampled_from(MODES))
    def exact(program: Program, mode: str) -> None:
        check(program, mode, torch.float64, 1e-9)

    exact()


ATTACKS = ("scaled", "nan", "infinite", "outlier target")


def attacked(value: torch.Tensor, attack: str, *, target: bool) -> torch.Tensor:
    """The batch with its last sample made as harmful as can be."""
    value = value.clone()
    if not value.is_floating_point() or (attack == "outlier target") != target:
        return value
    factor = {"scaled": 1e6, "nan": float("nan"), "infinite": float("inf"), "outlier target": 1e6}[attack]
    value[-1] = value[-1] * factor + (factor if target else 0)
    return value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_no_sample_moves_the_clipped_sum_by_more_than_the_bound(dtype: torch.dtype) -> None:
    @seed(7)
    @EVERY_TIME
    @given(program=programs(), mode=st.sampled_from(MODES), attack=st.sampled_from(ATTACKS))
    def bounded(program: Program, mode: str, attack: str) -> None:
        if program.B < 2:
            return
        try:
            attack_one(program, mode, attack)
        except MemoryBudgetError:
            reject()

    def attack_one(program: Program, mode: str, attack: str) -> None:
        case = build(program, dtype)
        last = len(case.batch) - 1
        whole = tuple(attacked(value, attack, target=i == last) for i, value in enumerate(case.batch))
        less = map_tensors(lambda value: value[:-1], whole)
        sums = [
            private_gradients(
                copy.deepcopy(case.model),
                case.loss_fn,
                batch,
                max_grad_norm=BOUND,
                **mode_settings(mode),
                loss_reduction=program.reduction,
                criterion=case.criterion,
            )[1]
            for batch in (whole, less)
        ]
        moved = torch.cat([(sums[0][name] - sums[1][name]).double().flatten() for name in sums[0]]).norm()
        assert float(moved) <= BOUND * (1 + 1e-5)

    bounded()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_sample_leaves_what_its_norm_says_in_every_precision(precision: str) -> None:
    """Rounding may move a gradient, but never past the bound, and never away from its norm."""

    @seed(11)
    @EVERY_TIME
    @given(program=programs(), mode=st.sampled_from(MODES[:3]), attack=st.sampled_from(["", *ATTACKS]))
    def alone(program: Program, mode: str, attack: str) -> None:
        case = build(program, torch.float32)

        def loss_fn(model: nn.Module, batch: Any, criterion: nn.Module) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                return case.loss_fn(model, batch, criterion)

        one = map_tensors(lambda value: value[-1:], case.batch)
        if attack:
            one = tuple(attacked(value, attack, target=i == len(one) - 1) for i, value in enumerate(one))
        for bound in (BOUND, 1e30):
            norms, sums = private_gradients(
                copy.deepcopy(case.model),
                loss_fn,
                one,
                max_grad_norm=bound,
                **mode_settings(mode),
                loss_reduction=program.reduction,
                criterion=case.criterion,
            )
            left = float(torch.cat([total.double().flatten() for total in sums.values()]).norm())
            assert left <= bound * (1 + 1e-5)
            if math.isfinite(float(norms)):
                assert left == pytest.approx(min(float(norms), bound), rel=1e-4)
            else:
                assert left == 0.0

    alone()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_random_models_under_compilation() -> None:
    @seed(5)
    @settings(EVERY_TIME, max_examples=10)
    @given(program=programs())
    def exact(program: Program) -> None:
        torch.compiler.reset()
        case = build(program, torch.float64)
        extra = () if case.criterion is None else (case.criterion,)
        right = single_sample_loop(case.model, case.loss_fn, case.batch, criterion=case.criterion)
        model = without_dropout(copy.deepcopy(case.model))
        attach(model, right.max_grad_norm, loss_reduction=program.reduction)
        model.compile(backend="eager", dynamic=True)
        found = gradients(model, model, lambda m, b: case.loss_fn(m, b, *extra), case.batch)
        largest = min(float(right.norms.max()), right.max_grad_norm)
        for name, value in right.sums.items():
            error = (found.get(name, torch.zeros_like(value)) - value).abs().max()
            assert float(error) <= 1e-9 * max(largest, 1e-12), name

    exact()
