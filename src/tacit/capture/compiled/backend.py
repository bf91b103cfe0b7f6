"""The backend that stands before the user's: of the graph of a plain forward it makes one of a private forward."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from tacit.capture.compiled.call import Call, Kind, Role
from tacit.capture.compiled.parts import Form
from tacit.capture.compiled.recorder import Outside, Recorder
from tacit.capture.compiled.replay import Replay, Seen
from tacit.capture.compiled.settings import Backend
from tacit.capture.compiled.sizes import Sizes
from tacit.capture.marks import Mark, set_mark
from tacit.errors import NoRuleError, PrivacyError, TacitError
from tacit.uses import Layout

Following = Callable[[list[tuple[int, ...]]], Mark]
"""Finds the mark of an output from the sizes of a call."""


class PrivateBackend:
    """Called by dynamo with the graph of a forward.

    Args:
        backend: the user's, which compiles what comes out.
        call: the forward that is running.
    """

    def __init__(self, backend: Backend, call: Callable[[], Call]) -> None:
        self._backend = backend
        self._call = call

    def __call__(self, graph: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        call = self._call()
        roles = [call.role(value) for value in examples]
        if not any(role.kind is Kind.BATCH for role in roles):
            raise NoRuleError(f"the compiled {call.path} does not read the batch. Call the original model.")
        placeholders = graph.graph.find_nodes(op="placeholder")
        fakes = [_severed(n.meta["example_value"], role) for n, role in zip(placeholders, roles, strict=True)]
        replay = Replay(graph, roles, call.path, call.where)
        seen, recorder = _tried(replay, fakes)
        sizes = Sizes(fakes)
        likes = [(sizes.add(part.shape), part.dtype) for part in recorder.parts]
        marks = [None if mark is None else _following(mark, sizes) for mark in seen.marks]
        traced = _as_graph(replay, recorder.forms, len(likes), len(fakes), len(seen.outputs))
        compiled = self._backend(traced, [*(_slot(part) for part in recorder.parts), *fakes])
        return PrivateGraph(compiled, self._call, roles, recorder.forms, sizes, likes, marks, seen)


class PrivateGraph:
    """A compiled private forward; dynamo's code calls it with what the plain graph would take."""

    def __init__(
        self,
        compiled: Callable[..., Any],
        call: Callable[[], Call],
        roles: list[Role],
        forms: list[Form],
        sizes: Sizes,
        likes: list[tuple[int, torch.dtype]],
        marks: list[Following | None],
        seen: Seen,
    ) -> None:
        self._compiled = compiled
        self._call = call
        self._roles = roles
        self._forms = forms
        self._sizes = sizes
        self._likes = likes
        self._marks = marks
        self._contacts = seen.contacts
        self._tables = seen.tables
        self._narrow, self._narrow_sums = seen.narrow, seen.narrow_sums

    def __call__(self, *inputs: Any) -> Any:
        call = self._call()
        if [call.role(value) for value in inputs] != self._roles:
            raise PrivacyError(
                f"the compiled {call.path} was called with other parameters, or with the batch in other inputs, than "
                "it was compiled for. Call torch.compiler.reset(), or the original model."
            )
        call.ran += 1
        run = call.frame.run
        run.contacts.update({name: run.contacts.get(name, 0) + count for name, count in self._contacts.items()})
        run.tables |= self._tables
        run.narrow |= self._narrow
        run.narrow_sums |= self._narrow_sums
        sizes = self._sizes.read(inputs)
        slots: tuple[Tensor, ...] = ()
        if self._likes:
            likes = [(torch.Size(sizes[place]), dtype) for place, dtype in self._likes]
            slots = Outside.apply(call.frame.carrier, run, self._forms, likes)
        outputs = self._compiled(*slots, *map(_severed, inputs, self._roles))
        for value, following in zip(outputs, self._marks, strict=True):
            if following is not None:
                set_mark(value, following(sizes))
        return outputs


def _severed(value: Any, role: Role) -> Any:
    """Parameters without the way back to them: a graph can then send them no gradient."""
    return value.detach() if role.kind in (Kind.PRIVATE, Kind.CONSTANT) else value


def _tried(replay: Replay, fakes: Sequence[Any]) -> tuple[Seen, Recorder]:
    """Run forward and backward on tensors without values, to learn which uses there are, and of what shapes.

    Raises:
        TacitError: what would be refused without a graph, too.
        NoRuleError: something asks for values.
    """
    recorder = Recorder()
    like = next(value for value in fakes if isinstance(value, Tensor))
    try:
        with _mode_of(like), torch.enable_grad():
            slot = torch.zeros((), device=like.device, requires_grad=True)
            seen = replay.run(recorder, None, [slot], fakes)
            ends = [value for value in seen.outputs if isinstance(value, Tensor) and value.requires_grad]
            if ends:
                wanted = [value for value in fakes if isinstance(value, Tensor) and value.requires_grad]
                gradients = [torch.empty_like(value) for value in ends]
                torch.autograd.grad(ends, [slot, *wanted], gradients, allow_unused=True)
    except TacitError:
        raise
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError) as error:
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise NoRuleError(
            f"{replay.here()} needs what a graph does not know, such as the values of tensors ({cause}). Call the "
            "original model, or compile modules without parameters by themselves."
        ) from error
    return seen, recorder


def _mode_of(value: Tensor) -> Any:
    assert isinstance(value, torch._subclasses.FakeTensor)
    return value.fake_mode


def _slot(part: Tensor) -> Tensor:
    with _mode_of(part):
        zero = torch.zeros((), dtype=part.dtype, device=part.device)
        return zero.expand(part.shape).requires_grad_(True)


def _following(mark: Mark, sizes: Sizes) -> Following:
    layout = mark.layout
    if layout is None:
        return lambda _known: mark
    if layout.owner is not None:
        raise NoRuleError(
            "rows of an output of a compiled forward were picked by the values of tensors: which sample each belongs "
            "to cannot be told beforehand. Call the original model."
        )
    place = sizes.add((layout.samples, layout.outer, layout.inner))

    def found(known: list[tuple[int, ...]]) -> Mark:
        samples, outer, inner = known[place]
        return Mark(Layout(samples, layout.dim, outer, inner), mark.lost, mark.mixed, mark.reduced, mark.pointer)

    return found


def _as_graph(replay: Replay, forms: list[Form], slots: int, inputs: int, outputs: int) -> GraphModule:
    """A graph of one call, that of the replay: the user's backend traces into it."""

    def private_forward(*values: Any) -> tuple[Any, ...]:
        return replay.run(Recorder(), forms, values[:slots], values[slots:]).outputs

    # A name of its own, so that no cache takes it for another forward.
    private_forward.__name__ = private_forward.__qualname__ = f"private_forward_{uuid.uuid4().hex}"
    graph = fx.Graph()
    names = [f"slot_{i}" for i in range(slots)] + [f"input_{i}" for i in range(inputs)]
    result = graph.call_function(private_forward, tuple(graph.placeholder(name) for name in names))
    graph.output(tuple(graph.call_function(_item, (result, i)) for i in range(outputs)))
    return GraphModule(torch.nn.Module(), graph)


def _item(values: tuple[Any, ...], place: int) -> Any:
    return values[place]
