"""Regions: forwards that run as one graph, made by the user's own compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tacit.capture.compiled.backend import Backend, Call, PrivateBackend
from tacit.capture.contact import Frame, Names
from tacit.capture.entrance import Entrance
from tacit.errors import FallbackWarning, PrivacyError, TacitError


class Regions:
    """The compiled forwards of one session.

    Args:
        names: which parameters are private.
        passing: is told whether entrances within a graph let calls through.
    """

    def __init__(self, names: Names, passing: Callable[[bool], None]) -> None:
        self._names = names
        self._passing = passing
        self._regions: dict[tuple[Entrance, int], _Region] = {}

    def run(
        self,
        callback: Any,
        frame: Frame,
        entrance: Entrance,
        batch: list[Tensor],
        batch_dim: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        eagerly: Callable[[], Any],
    ) -> Any:
        """Run an outermost forward as a graph; ``eagerly`` if no graph can be made of it and none is demanded."""
        settings = Settings.of(callback)
        key = entrance, id(settings.backend)
        region = self._regions.get(key)
        if region is None:
            region = self._regions[key] = _Region(settings.backend, entrance)
        if region.given_up:
            return eagerly()
        places = {id(value): batch_dim if value.dim() > batch_dim else 0 for value in batch}
        call = Call(frame.run, frame.carrier, places, self._names.private, self._names.others, entrance.path)
        try:
            self._passing(True)
            return region.run(call, args, kwargs)
        except _Failed as failed:
            if settings.fullgraph:
                raise failed.error from failed.error.__cause__
            region.given_up = True
            warnings.warn(
                f"{entrance.path} is not compiled, but runs as it is, and as private: {failed.error}",
                FallbackWarning,
                stacklevel=2,
            )
            self._passing(False)
            return eagerly()
        finally:
            self._passing(False)


class _Failed(Exception):
    """No graph could be made."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Settings:
    """What the user asked ``torch.compile`` for."""

    def __init__(self, backend: Backend, *, fullgraph: bool) -> None:
        self.backend = backend
        self.fullgraph = fullgraph

    @classmethod
    def of(cls, callback: Any) -> Settings:
        fullgraph, backend = False, callback
        while (inner := getattr(backend, "_torchdynamo_orig_backend", None)) is not None:
            fullgraph |= bool(getattr(backend, "_one_graph", False))
            backend = inner
        return cls(backend, fullgraph=fullgraph)


class _Region:
    def __init__(self, backend: Backend, entrance: Entrance) -> None:
        self.backend = backend  # keeps its identity
        self.given_up = False
        self._entrance = entrance
        self._call: Call | None = None
        self._compiled = torch.compile(_own(entrance.inner), backend=PrivateBackend(backend, self._running), fullgraph=True)

    def _running(self) -> Call:
        if self._call is None:
            raise PrivacyError(
                f"the compiled {self._entrance.path} ran outside a private forward. Call the model itself."
            )
        return self._call

    def run(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = tuple(_pattern(call, args, kwargs))
        self._call = call
        try:
            out = self._compiled(tensors, args, kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            inner = error.inner_exception
            raise _Failed(inner if isinstance(inner, TacitError) else error) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _Failed(error) from error
        finally:
            self._call = None
        if call.ran != 1:
            raise PrivacyError(f"the compiled {call.path} did not run as one graph. Call the original model.")
        return out


def _pattern(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    from tacit.capture.marks import tensors_in

    return [call.batch.get(id(value), -1) for value in tensors_in((args, kwargs))]


def _own(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(pattern: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return inner(*args, **kwargs)

    # dynamo counts recompilations by code object: each region gets its own
    forward.__code__ = forward.__code__.replace(co_name="private_forward")
    return forward
