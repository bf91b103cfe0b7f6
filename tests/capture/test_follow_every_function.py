"""Every torch function: if the batch is followed through a call, no sample's rows may depend on another's."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, get_overridable_functions

from tacit.capture import follow as follow_module
from tacit.capture.families import MixedRowsError, NotBatchError
from tacit.capture.follow import follow
from tacit.capture.marks import Mark, mark_of, set_mark, tensors_in
from tacit.capture.pointwise import POINTWISE
from tacit.uses import Layout

B = 4
OWNERS = {"torch": torch, "F": F, "Tensor": Tensor, "special": torch.special, "fft": torch.fft, "linalg": torch.linalg}

# Random ones, those that write to places, and those that need other backends.
SKIPPED = (
    "rand dropout bernoulli multinomial normal poisson binomial set_ backward register empty resize geometric cauchy "
    "exponential uniform gumbel rrelu data_ptr numpy tolist dlpack storage map_ map2_ apply_ __reduce module_load hook "
    "__set __del cudnn mps _fused cuda xpu ipu mtia pin_memory fractional sparse _foreach mkldnn quantize retain "
    "rename refine _batch_norm miopen fbgemm record_stream __format__ lobpcg svd_lowrank pca_lowrank"
).split()

CALLS = {
    "f(h)": lambda f, h: f(h),
    "f(h, h)": lambda f, h: f(h, h),
    "f(h, other)": lambda f, h: f(h, h * 1),
    "f(h, h, h)": lambda f, h: f(h, h, h),
    "f(h, 0)": lambda f, h: f(h, 0),
    "f(h, 1)": lambda f, h: f(h, 1),
    "f(h, -1)": lambda f, h: f(h, -1),
    "f(h, 2)": lambda f, h: f(h, 2),
    "f(h, 0, 1)": lambda f, h: f(h, 0, 1),
    "f(h, 1, 2)": lambda f, h: f(h, 1, 2),
    "f(h, (0,))": lambda f, h: f(h, (0,)),
    "f(h, dim=0)": lambda f, h: f(h, dim=0),
    "f(h, c)": lambda f, h: f(h, torch.ones(B, B, dtype=h.dtype)),
    "f(c, h)": lambda f, h: f(torch.arange(16.0).view(B, B).to(h.dtype), h),
    "f(c, h, c)": lambda f, h: f(torch.ones(B, B, dtype=h.dtype), h, h),
    "f([h, h])": lambda f, h: f([h, h]),
    "f(h, column)": lambda f, h: f(h, h[:, 0]),
    "f(column, h)": lambda f, h: f(h[:, 0], h),
    "f(column, column)": lambda f, h: f(h[:, 0], h[:, 1]),
    "f(h, (4, 4))": lambda f, h: f(h, (B, B)),
    "f(h, 1, 0, c)": lambda f, h: f(h, 1, 0, torch.zeros(1, *h.shape[1:])),
    "f(h, 0, index, h)": lambda f, h: f(h, 0, h.abs().long() % B, h),
}
CASES = [(torch.float32, (B, B)), (torch.float32, (2, B, 5)), (torch.int64, (B, B))]


def functions():
    overridable = {function for several in get_overridable_functions().values() for function in several}
    seen = set()
    for place, owner in OWNERS.items():
        for name in dir(owner):
            function = getattr(owner, name)
            if any(part in name for part in SKIPPED) or not callable(function) or function in seen:
                continue
            if function in overridable:
                seen.add(function)
                yield f"{place}.{name}", function


class Spy(TorchFunctionMode):
    """Follows marks through calls, and nothing else."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        marked = [value for value in tensors_in((args, kwargs)) if mark_of(value) is not None]
        if marked:
            for value in tensors_in(out):
                if not any(value is one for one in marked):
                    mark = follow(func, marked, args, kwargs, value)
                    if mark is not None:
                        set_mark(value, mark)
        return out


def followed(call, function, values, dim):
    h = values.clone()
    set_mark(h, Mark(Layout(B, dim)))
    with Spy():
        out = call(function, h)
    return [value for value in tensors_in(out) if value is not h]


def inputs(kind, shape):
    torch.manual_seed(0)
    values = torch.randn(shape)
    return values if kind.is_floating_point else (values * 2).long() if kind == torch.int64 else values > 0


def is_followed(value):
    mark = mark_of(value)
    return mark is not None and mark.layout is not None and not mark.pointer


def mixes(call, function, kind, shape):
    """Whether an output is said to have its samples somewhere, and one of them depends on the first or last one."""
    dim = shape.index(B) if shape[0] != B else 0
    values = inputs(kind, shape)
    before = followed(call, function, values, dim)
    return any(map(is_followed, before)) and any(
        moves(call, function, values, dim, sample, before) for sample in (0, B - 1)
    )


def moves(call, function, values, dim, sample, before):
    changed = values.clone()
    row = changed.select(dim, sample)
    row.copy_(~row if values.dtype == torch.bool else row + 2)
    after = followed(call, function, changed, dim)
    if [out.shape for out in before] != [out.shape for out in after]:
        return False
    for one, other in zip(before, after, strict=True):
        if is_followed(one):
            layout = mark_of(one).layout
            left, right = (out.movedim(layout.dim, 0)[layout.owners() != sample] for out in (one, other))
            if not torch.allclose(as_real(left), as_real(right), equal_nan=True):
                return True
    return False


def as_real(value):
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value.double()


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_no_call_that_is_followed_mixes_samples(kind, shape):
    found, tried = [], 0
    for name, function in functions():
        for form, call in CALLS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    mixed = mixes(call, function, kind, shape)
                except Exception:  # noqa: BLE001  it is not called like that
                    continue
            tried += 1
            if mixed:
                found.append(f"{name}: {form}")
    assert tried > 1000
    assert not found


def long_way(function, sources, args, kwargs, out):
    """What all operands say of an output, each looked at by itself, whatever is known to be the same."""
    chosen, again = follow_module._with_a_say(function, sources, args, kwargs), []
    if not chosen:
        return None
    if len(chosen) > 1:
        args, kwargs, again = follow_module._apart(args, kwargs)
    try:
        return follow_module._agreed(function, [*chosen, *again], args, kwargs, out)
    except NotBatchError:
        return None
    except MixedRowsError:
        return Mark(None, lost=follow_module._name(function), mixed=True)


class BothWays(TorchFunctionMode):
    """Compares the short way with the long one."""

    def __init__(self):
        super().__init__()
        self.compared, self.differ = 0, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        marked = [value for value in tensors_in((args, kwargs)) if mark_of(value) is not None]
        for value in tensors_in(out) if marked else ():
            if value.dim() > 0 and not any(value is one for one in marked):
                marks = [way(func, marked, args, kwargs, value) for way in (follow, long_way)]
                self.compared += 1
                if marks[0] != marks[1]:
                    self.differ.append((func, marks))
        return out


@pytest.mark.parametrize("mark", [Mark(Layout(B, 1)), Mark(Layout(B, 1), pointer=True), Mark(None, reduced=True)])
def test_the_short_way_leads_where_the_long_one_does(mark):
    both = BothWays()
    kind, shape = CASES[1]
    for _, function in functions():
        for form in ("f(h)", "f(h, h)", "f(h, other)", "f(h, 1)", "f(c, h, c)"):
            h = inputs(kind, shape)
            set_mark(h, mark)
            with warnings.catch_warnings(), both:
                warnings.simplefilter("ignore")
                try:
                    CALLS[form](function, h)
                except Exception:  # noqa: BLE001  it is not called like that
                    continue
    assert both.compared > 300
    assert not both.differ


@pytest.mark.filterwarnings("ignore:torch.qr is deprecated")
@pytest.mark.parametrize(
    "function", [torch.inner, torch.isin, torch.qr, torch.gradient, Tensor.__reversed__, torch.inverse]
)
def test_what_mixes_rows_is_lost(function):
    """Their results are as large as the batch, and were once taken to be its rows."""
    h = torch.randn(B, B)
    out = followed(CALLS["f(h, h)"] if function in (torch.inner, torch.isin) else CALLS["f(h)"], function, h, 0)
    assert all(mark_of(value).layout is None for value in out)


def test_a_call_that_is_pointwise_is_followed():
    h = torch.randn(B, B)
    for function in POINTWISE & {torch.sigmoid, F.gelu, Tensor.double, torch.special.entr}:
        (out,) = followed(CALLS["f(h)"], function, h, 0)
        assert mark_of(out).layout == Layout(B, 0)
