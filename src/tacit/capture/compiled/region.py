"""Regions: forwards that run as one graph, made by the user's own compiler.

Dynamo begins at the entrance of the outermost private module, and skips it: so it is run as it is, opens a pass, and
calls the module's forward compiled by a backend of ours, which stands before the user's. What cannot be one graph runs
uncompiled, and as private.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from tacit.capture.compiled.backend import PrivateBackend
from tacit.capture.compiled.call import Call, pattern_of, places_of
from tacit.capture.compiled.settings import Backend, Settings, count_as_compiled
from tacit.capture.contact import Frame, Names
from tacit.capture.entrance import Entrance
from tacit.errors import ConfigurationError, FallbackWarning, PrivacyError, TacitError

_ADVICE = "It runs uncompiled, and as private."

_TOO_MANY = (
    "dynamo would have to compile it once more than it may (torch._dynamo.config.recompile_limit). Compile it with "
    "dynamic=True, and keep what changes from call to call in tensors."
)


class Regions:
    """The compiled forwards of one session.

    Attributes:
        running: a compiled forward is running: entrances that are called now were not seen.

    Args:
        names: which parameters are private.
        aside: takes entrances away for a while, so that dynamo sees the model as it is.
        never: why no forward is compiled; empty if they may be.
    """

    def __init__(self, names: Names, aside: Callable[[], AbstractContextManager[None]], *, never: str) -> None:
        self.running = False
        self._aside = aside
        self._names = names
        self._never = never
        self._regions: dict[tuple[Entrance, int], _Region] = {}
        self._plain: dict[tuple[Entrance, int], Callable[..., Any]] = {}
        self._warned: set[Entrance] = set()

    def forget(self) -> None:
        self._regions.clear()
        self._plain.clear()

    def run(
        self,
        callback: Any,
        frame: Frame,
        entrance: Entrance,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        eagerly: Callable[[], Any],
    ) -> Any:
        """Run an outermost forward as a graph, or ``eagerly`` if no graph can be made of it and none is demanded.

        Raises:
            TacitError: the user demands a graph, and none can be made, or none that is private.
        """
        settings = Settings.of(callback)
        key = entrance, id(settings.backend)
        region = self._regions.get(key)
        if region is None:
            region = self._regions[key] = _Region(settings.backend, entrance)
        if region.given_up:
            return eagerly()
        if frame.run.dummy or (frame.run.samples == 1 and region.sizes and 1 not in region.sizes):
            # A graph for batches of one is a graph of its own: it is not worth it for the odd one.
            count_as_compiled()
            return eagerly()
        try:
            if self._never:
                raise _UncompiledError(ConfigurationError(self._never))
            with self._aside():
                self.running = True
                return self._compiled(region, frame, entrance, args, kwargs)
        except _UncompiledError as found:
            if settings.fullgraph:
                raise found.error from found.error.__cause__
            region.given_up = True
            self.warn(entrance, f"{entrance.path} cannot be one private graph: {found.error} {_ADVICE}")
        finally:
            self.running = False
        return eagerly()

    def run_plain(self, callback: Any, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a forward that is not private, such as an evaluation, compiled as it is."""
        settings = Settings.of(callback)
        key = entrance, id(settings.backend)
        compiled = self._plain.get(key)
        if compiled is None:
            forward = _own(entrance.inner)
            compiled = torch.compile(forward, backend=settings.backend, fullgraph=settings.fullgraph)
            self._plain[key] = compiled
        with self._aside():
            return compiled("plain", args, kwargs)

    def warn(self, entrance: Entrance, message: str) -> None:
        """Say once that a module is not compiled."""
        if entrance not in self._warned:
            self._warned.add(entrance)
            warnings.warn(message, FallbackWarning, stacklevel=4)

    def uncompiled(self, callback: Any, entrance: Entrance) -> None:
        """Say that a compiled module within a private forward that is not compiled as a whole runs uncompiled.

        Raises:
            ConfigurationError: ``fullgraph=True`` forbids it.
        """
        message = f"{entrance.path} is compiled by itself, in a private model that is not: compile the whole model."
        if Settings.of(callback).fullgraph:
            raise ConfigurationError(message)
        self.warn(entrance, f"{message} {_ADVICE}")

    def _compiled(
        self, region: _Region, frame: Frame, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            places = places_of((args, kwargs), frame.run.samples, entrance.path)
        except TacitError as error:
            raise _UncompiledError(error) from error
        frame.run.plain_only = True  # a compiled backward runs once
        return region.run(Call(frame, entrance.path, _where(entrance), self._names, places), args, kwargs)


class _UncompiledError(Exception):
    """No graph could be made."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Region:
    """One module, compiled by one backend.

    Attributes:
        given_up: no graph could be made of it.
        sizes: batch sizes that it ran with.
    """

    def __init__(self, backend: Backend, entrance: Entrance) -> None:
        self.given_up = False
        self.sizes: set[int] = set()
        self._entrance = entrance
        self._call: Call | None = None
        self._compiled = torch.compile(
            _own(entrance.inner), backend=PrivateBackend(backend, self._running), fullgraph=True
        )

    def _running(self) -> Call:
        if self._call is None:
            raise PrivacyError(f"the graph of {self._entrance.path} ran outside its forward. Call the model itself.")
        return self._call

    def run(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = call.frame.run.promises()
        self._call = call
        try:
            # dynamic=True would make symbols of constants such as eps, which operators do not take.
            with torch._dynamo.config.patch(specialize_float=True):
                out = self._compiled(pattern_of((args, kwargs), call.batch), args, kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            if call.ran:
                raise
            inner = error.inner_exception
            raise _UncompiledError(inner if isinstance(inner, TacitError) else error) from error
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise _UncompiledError(ConfigurationError(_TOO_MANY)) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            if call.ran:
                raise
            raise _UncompiledError(error) from error
        finally:
            self._call = None
            if not call.ran:
                call.frame.run.take_back(before)
        if call.ran != 1:
            raise PrivacyError(
                f"the compiled {call.path} ran as {call.ran} graphs, not as one, so that a part of it may not have "
                "been seen. Call the original model."
            )
        self.sizes.add(call.frame.run.samples)
        return out


def _where(entrance: Entrance) -> str:
    return f"{entrance.path}, {type(entrance.module).__name__}.forward"


def _own(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(pattern: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Reading it makes dynamo compare it: a graph is for inputs that carry the batch in the same places.
        return inner(*args, **kwargs) if pattern else None

    # dynamo counts recompilations by code object: each region has its own
    forward.__code__ = forward.__code__.replace(co_name="private_forward")
    return forward
