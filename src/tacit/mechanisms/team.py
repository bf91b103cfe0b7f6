"""The threads that torch's operators share, for work of our own.

After an operator these threads wait for the next one for a while, without sleep. Others that are woken meanwhile find
no free processor, and begin when the work is over: with threads of our own, noise took twice as long after a backward.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PROCESS = os.getpid()
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(function: int, order: int, threads: int, needed: Sequence[object]) -> None:
    """Call ``function(order)`` in so many threads at once, without Python's lock, and return when all have returned.

    Args:
        function: the address of a compiled function of an address, that returns nothing and raises nothing.
        order: an address.
        threads: how many.
        needed: what lives for as long as any of them runs, also if an interrupt ends the wait for them.
    """
    work = _FUNCTION(function)
    parallel = _parallel() if threads > 1 and os.getpid() == _PROCESS else None  # a fork has lost the threads
    if threads == 1:
        work(order)
    elif parallel is not None:
        parallel(function, order, threads, 0)
    else:
        with ThreadPoolExecutor(threads - 1, thread_name_prefix="noise") as pool:
            others = [pool.submit(_call, work, order, needed) for _ in range(threads - 1)]
            work(order)
            for each in others:
                each.result()


def _call(work: Callable[[int], None], order: int, needed: Sequence[object]) -> None:  # noqa: ARG001
    work(order)


@cache
def _parallel() -> Any:
    """``GOMP_parallel`` of the OpenMP library that torch brought and has loaded, or None if it is another."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            parallel = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None
