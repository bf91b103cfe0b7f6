"""Matrix products by oneDNN instead of MKL, where that is quicker and as accurate.

MKL runs float32 products at half speed on processors that are not Intel's. PyTorch hands them to oneDNN if it is
allowed bfloat16 inside; on a processor without units for bfloat16 oneDNN computes in float32 all the same. Elsewhere it
would really round. So it is tried out first, and refused unless it is as accurate as float32.
"""

from __future__ import annotations

import warnings

import torch

from tacit.timing import quickest

ACCURACY = 2e-6
"""The largest relative error of a product that is still float32's own."""

_SIZE, _RUNS = 512, 5


_trusted: list[str] = []


def is_trusted(setting: str) -> bool:
    """Whether products are as accurate as float32's with this setting, as a probe has found."""
    return setting in _trusted


class FastMatmul:
    """The setting, for the whole process, from :meth:`begin` to :meth:`end`."""

    def __init__(self) -> None:
        self._before: str | None = None

    @property
    def on(self) -> bool:
        return self._before is not None

    def begin(self) -> None:
        """Set it if it helps; warn if it does not."""
        refused = probe()
        if refused:
            warnings.warn(f"fast_matmul=True was left out: {refused}.", UserWarning, stacklevel=2)
            return
        self._before = _setting()
        _set("bf16")
        _trusted.append("bf16")

    def end(self) -> None:
        """Put the setting back as it was."""
        if self._before is not None:
            _set(self._before)
            _trusted.remove("bf16")
            self._before = None


def probe() -> str:
    """Why oneDNN is not to be used here, in words; empty if it is."""
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN"
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, _SIZE, _SIZE), generator=generator)
    exact = a.double() @ b.double()
    before, usual = _setting(), quickest(lambda: a @ b, _RUNS)
    try:
        _set("bf16")
        found = a @ b
        quick = quickest(lambda: a @ b, _RUNS)
    finally:
        _set(before)
    error = float((found - exact).abs().max() / exact.abs().max())
    if error > ACCURACY:
        return f"oneDNN rounds to bfloat16 on this processor (relative error {error:.0e})"
    if quick >= usual:
        return f"oneDNN is not quicker on this processor ({1e3 * quick:.2f} ms against {1e3 * usual:.2f} ms)"
    return ""


def _setting() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def _set(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value  # type: ignore[attr-defined]
