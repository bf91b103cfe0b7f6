"""Modules that torch.compile made: wrappers around the real ones."""

from __future__ import annotations

import sys

import torch
from torch import nn


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile(model)`` returns."""
    # Importing dynamo takes a second; where it was not imported, nothing was compiled.
    return "torch._dynamo" in sys.modules and isinstance(module, torch._dynamo.OptimizedModule)


def plain_module(module: nn.Module) -> nn.Module:
    """The module behind a compiled one, or the module itself."""
    while is_compiled_wrapper(module):
        module = module._modules["_orig_mod"]  # type: ignore[assignment]
    return module


def renew_compiled_wrappers(module: nn.Module) -> None:
    """Let compiled modules look again at the forwards that they wrap, which were replaced.

    They decide when they are made whether dynamo begins with the forward or in front of it.
    """
    for part in module.modules():
        if is_compiled_wrapper(part):
            part._initialize()  # type: ignore[operator]
