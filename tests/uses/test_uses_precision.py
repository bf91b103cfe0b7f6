"""Norms and clipped sums are float32's own, whatever precision products have; two passes are told apart."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import ConfigurationError
from tacit.testing import private_gradients
from tacit.uses import TUNER, Dense, Fingerprint, FullPrecision, Gather, Outer, any_differ
from tacit.uses.fast_matmul import FastMatmul, is_trusted, probe

CPU = torch.device("cpu")


@pytest.fixture
def lowered(device):
    """Where the precision of products has been lowered."""
    if device == "cuda":  # it is, there
        yield torch.backends.cuda.matmul
        return
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    yield matmul
    matmul.fp32_precision = before


def test_a_context_raises_the_precision_and_puts_it_back(lowered, device):
    low = lowered.fp32_precision
    full = FullPrecision(torch.device(device))
    for _ in range(2):
        with full:
            assert lowered.fp32_precision == "ieee"
        assert lowered.fp32_precision == low


def test_without_a_lower_precision_nothing_is_touched():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with FullPrecision(CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("mode", ["auto", "ghost"])
@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_one_sample_keeps_the_bound_when_products_are_rounded(lowered, device, mode, clipping):
    """Inputs and gradients just above the middle between two numbers of bfloat16, or of TF32: each is rounded up.

    On a processor without bfloat16 units the setting changes nothing, and neither does it here.
    """
    layer = nn.Linear(256, 256, bias=False).to(device)
    middle = 2**-8 if device == "cpu" else 2**-11
    x = torch.full((1, 4, 256), 1 + middle * (1 + 2**-4), device=device)
    _, sums = private_gradients(
        layer,
        lambda m, b, criterion: criterion(m(b[0]) * b[0], b[0]),
        (x,),
        max_grad_norm=1.0,
        grad_sample_mode=mode,
        clipping=clipping,
        criterion=lambda out, _: out.flatten(1).sum(1).mean(),
    )
    assert float(sums["weight"].double().norm()) <= 1 + 1e-5


@pytest.mark.parametrize("mode", ["auto", "ghost"])
@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 257), (torch.float16, 2049)])
def test_one_sample_keeps_the_bound_when_its_backward_is_within_autocast(mode, clipping, dtype, width, device):
    """Gram matrices of so many ones: autocast would round the norm down, and nothing in the sum."""

    class Backward:
        def __init__(self, loss):
            self.loss = loss

        def backward(self):
            with torch.autocast(device, dtype=dtype):
                self.loss.backward()

    with TUNER.forced("gram"):
        _, sums = private_gradients(
            nn.Linear(width, 257, bias=False).to(device),
            lambda m, b, criterion: Backward(criterion(m(b[0]), b[0])),
            (torch.ones(1, 4, width, device=device),),
            max_grad_norm=1.0,
            grad_sample_mode=mode,
            clipping=clipping,
            criterion=lambda out, _: out.flatten(1).sum(1).mean(),
        )
    assert abs(float(sums["weight"].double().norm()) - 1) <= 1e-6


REDUCED = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


@pytest.fixture
def settings_of_a_gpu():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    places = [(matmul, "fp32_precision"), (conv, "fp32_precision"), *((matmul, name) for name in REDUCED)]
    before = [getattr(*place) for place in places]
    yield places
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)


@pytest.mark.parametrize("lowered", [True, False])
def test_on_a_gpu_settings_are_raised_and_put_back(settings_of_a_gpu, lowered):
    """Settings can be read and written without one."""
    for place in settings_of_a_gpu[:2]:
        setattr(*place, "tf32" if lowered else "ieee")
    for place in settings_of_a_gpu[2:]:
        setattr(*place, lowered)

    def settings():
        return [getattr(*place) for place in settings_of_a_gpu]

    before = settings()
    full = FullPrecision(torch.device("cuda"))
    for _ in range(2):
        with full:
            assert settings() == ["ieee", "ieee", False, False, False]
        assert settings() == before


def test_on_a_gpu_the_older_switches_are_heeded_and_go_on_to_work():
    """In a process of its own: torch remembers which switches were used."""
    code = """
import torch
from tacit.uses import FullPrecision
matmul = torch.backends.cuda.matmul
for lower in (lambda: setattr(matmul, "allow_tf32", True), lambda: torch.set_float32_matmul_precision("medium")):
    lower()
    assert matmul.fp32_precision != "ieee" and matmul.allow_tf32
    with FullPrecision(torch.device("cuda")):
        assert matmul.fp32_precision == "ieee"
    assert matmul.allow_tf32
    matmul.allow_tf32 = False
    assert matmul.fp32_precision == "ieee" and not matmul.allow_tf32
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_fast_products_are_tried_out_first(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    reason = probe()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    fast = FastMatmul()
    monkeypatch.setattr("tacit.uses.fast_matmul.probe", lambda: reason or "slow")
    with pytest.warns(UserWarning, match="was left out"):
        fast.begin()
    assert not fast.on
    fast.end()
    monkeypatch.setattr("tacit.uses.fast_matmul.probe", lambda: "")
    fast.begin()
    assert fast.on
    assert is_trusted("bf16")
    with FullPrecision(CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    fast.end()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert not is_trusted("bf16")


def test_fingerprints_tell_samples_apart():
    torch.manual_seed(0)
    a, g = torch.randn(3, 4, 5), torch.randn(3, 4, 6)
    outer = Outer(a, g, torch.Size((6, 5)))
    same = Outer(a * (1 + 1e-6), g, torch.Size((6, 5)))
    assert not bool(Fingerprint(outer).differs(Fingerprint(same)))
    for other in (a * 1.001, a.flip(0), a.flip(1), -a):
        assert bool(Fingerprint(outer).differs(Fingerprint(Outer(other, g, torch.Size((6, 5))))))


@pytest.mark.parametrize("dim", [1, 2])
def test_any_two_that_change_places_are_a_difference(dim):
    torch.manual_seed(0)
    a, g = torch.randn(3, 5, 5), torch.randn(3, 5, 6)
    seen = Fingerprint(Outer(a, g, torch.Size((6, 5))))
    for one in range(5):
        for other in range(one):
            places = list(range(5))
            places[one], places[other] = other, one
            again = Outer(a.index_select(dim, torch.tensor(places)), g, torch.Size((6, 5)))
            assert bool(seen.differs(Fingerprint(again)))


def test_a_product_whose_terms_cancel_is_held_to_its_own_norm():
    """Factors that are nearly the same may have quite another product."""
    torch.manual_seed(0)
    a, g = torch.randn(3, 4, 5).repeat(1, 2, 1), torch.randn(3, 4, 6)
    g = torch.cat([g, -g * (1 + 1e-5)], 1)
    other = g + 5e-5 * torch.randn_like(g)
    shape = torch.Size((6, 5))
    again = Fingerprint(Outer(a, other, shape))
    assert not bool(Fingerprint(Outer(a, g, shape)).differs(again))  # as alike as factors can be told
    assert bool(Fingerprint(Outer(a, g, shape, formed=True)).differs(again))
    assert not bool(Fingerprint(Outer(a, g, shape, formed=True)).differs(Fingerprint(Outer(a, g, shape))))


def test_many_are_compared_at_once():
    torch.manual_seed(0)
    uses = [Dense(torch.randn(2, 3)), Outer(torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.Size((5, 4)))]
    same = [(Fingerprint(use), Fingerprint(use)) for use in uses]
    assert not bool(any_differ(same))
    for place, use in enumerate(uses):
        parts = [part.clone() for part in use.parts]
        parts[-1][1, -1] += 0.01
        other = Dense(*parts) if isinstance(use, Dense) else Outer(*parts, use.shape)
        assert bool(any_differ([*same[:place], (Fingerprint(use), Fingerprint(other)), *same[place + 1 :]]))


def test_a_sample_that_is_lost_in_both_is_no_difference():
    lost = torch.ones(2, 3)
    lost[0, 1] = float("nan")
    whole = torch.ones(2, 3)
    assert not bool(Fingerprint(Dense(lost)).differs(Fingerprint(Dense(lost.clone()))))
    assert bool(Fingerprint(Dense(lost)).differs(Fingerprint(Dense(whole))))
    assert bool(Fingerprint(Dense(whole)).differs(Fingerprint(Dense(lost))))


def test_other_rows_or_shapes_are_a_difference():
    g = torch.ones(2, 3, 4)
    ids = torch.tensor([[0, 1, 2], [3, 3, 3]])
    table = Gather(ids, g, 5)
    assert not bool(Fingerprint(table).differs(Fingerprint(Gather(ids.clone(), g.clone(), 5))))
    assert bool(Fingerprint(table).differs(Fingerprint(Gather(ids.flip(1), g, 5))))
    assert bool(Fingerprint(table).differs(Fingerprint(Gather(ids[:, :2], g[:, :2], 5))))


def test_the_setting_ends_with_the_run(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr("tacit.uses.fast_matmul.probe", lambda: "")
    model, engine = nn.Linear(3, 2), PrivacyEngine()
    made = {
        "module": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data_loader": DataLoader(TensorDataset(torch.randn(6, 3)), batch_size=3),
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
    }
    with pytest.raises(ConfigurationError, match="True or False"):
        engine.make_private(**made, fast_matmul="yes")
    engine.make_private(**made, fast_matmul=True)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    engine.detach()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
