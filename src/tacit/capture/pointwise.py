"""Calls that combine their operands position by position, so that every row stays where it is and by itself.

What is on no list of `follow` might mix rows, and keeps a shape that looks as if it did not (``torch.inner`` of a batch
with itself is B × B). So only what is known to be pointwise is taken for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.registry import methods

_ARITHMETIC = """
abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan
atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil clamp clamp_max
clamp_min clip copysign cos cosh deg2rad digamma div divide eq erf erfc erfinv exp exp2 expm1 fix float_power floor
floor_divide fmax fmin fmod frac frexp gcd ge greater greater_equal gt heaviside hypot i0 igamma igammac lcm ldexp le
lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
logit lt masked_fill maximum minimum mul multiply mvlgamma nan_to_num ne neg negative nextafter not_equal polar
polygamma positive pow rad2deg real imag reciprocal remainder round rsqrt rsub sgn sigmoid sign signbit sin sinc sinh
sqrt square sub subtract tan tanh true_divide trunc xlogy isclose isfinite isinf isnan isneginf isposinf isreal complex
conj conj_physical resolve_conj resolve_neg
""".split()
_OPERATORS = """
and div eq floordiv ge gt iadd iand idiv ifloordiv ilshift imod imul invert ior ipow irshift isub itruediv ixor le
lshift lt mod mul ne neg or pos pow abs radd rand rdiv rfloordiv rlshift rmod rmul ror rpow rrshift rshift rsub rtruediv
rxor sub add truediv xor
""".split()
_ACTIVATIONS = """
alpha_dropout celu dropout dropout1d dropout2d dropout3d elu feature_alpha_dropout feature_dropout gelu hardshrink
hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish native_dropout prelu relu relu6 rrelu selu silu softplus
softshrink softsign tanhshrink threshold
""".split()
_LOSSES = """
binary_cross_entropy binary_cross_entropy_with_logits gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss
margin_ranking_loss mse_loss poisson_nll_loss smooth_l1_loss soft_margin_loss
""".split()
_COPIES = """
__deepcopy__ alias_copy as_tensor bfloat16 bool broadcast_tensors byte cdouble cfloat chalf char clone contiguous copy_
cpu cuda detach detach_ detach_copy double fill_ float half int long pin_memory requires_grad_ short to type type_as
zero_ empty_like full_like ones_like zeros_like rand_like randn_like randint_like
""".split()
_RANDOM = """
_standard_gamma bernoulli bernoulli_ binomial cauchy_ exponential_ geometric_ log_normal_ normal normal_ poisson random_
uniform_
""".split()


def _known() -> frozenset[Callable[..., Any]]:
    names = [*_ARITHMETIC, *_ACTIVATIONS, *_LOSSES]
    names += [f"{name}_" for name in names] + [f"__{name}__" for name in _OPERATORS] + _COPIES + _RANDOM
    found = methods(names, torch, Tensor, F)
    special = [f for name in torch.special.__all__ if callable(f := getattr(torch.special, name))]
    getters = [getattr(Tensor, name).__get__ for name in ("real", "imag", "data")]
    return frozenset([*found, *special, *getters])


POINTWISE = _known()
"""``torch.special``'s softmax and logsumexp are none; `follow` looks into its own table first, which has them."""
