"""The backend that stands before the user's: makes the graph of a plain forward one of a private forward."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from tacit.capture.compiled.parts import Kind
from tacit.capture.compiled.recorder import Outside, Recorder
from tacit.capture.compiled.replay import Replay, Role, Seen
from tacit.capture.compiled.sizes import Sizes
from tacit.capture.marks import Mark, set_mark
from tacit.capture.passes import Pass
from tacit.errors import NoRuleError, PrivacyError
from tacit.uses import Layout

Backend = Callable[[GraphModule, list[Any]], Callable[..., Any]]

_numbers = itertools.count()


@dataclass(slots=True)
class Call:
    """One private forward that is running as a graph.

    Attributes:
        run: its pass.
        carrier: the carrier of that.
        batch: the inputs that carry the batch, and in which dimension, by identity.
        private: names of the private parameters, by identity.
        others: the identities of the model's other parameters.
        path: the name of the module.
        ran: how many graphs have run.
    """

    run: Pass
    carrier: Tensor
    batch: dict[int, int]
    private: dict[int, str]
    others: dict[int, str]
    path: str
    ran: int = 0

    def role(self, value: Any) -> Role:
        """What an input of a graph is.

        Raises:
            PrivacyError: it wants a gradient, and is neither of the batch nor a parameter.
        """
        if not isinstance(value, Tensor):
            return Role("number")
        if id(value) in self.batch:
            return Role("batch", dim=self.batch[id(value)])
        if not value.requires_grad or id(value) in self.others:
            return Role("constant")
        name = self.private.get(id(value))
        if name is None:
            raise PrivacyError(
                f"the compiled {self.path} uses a trainable tensor of shape {tuple(value.shape)} that is neither a "
                "parameter that the model had when it was made private nor an input with the batch: its gradient would "
                "be released unclipped. Register it as a parameter before make_private(), or detach() it."
            )
        return Role("private", name)


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
        if not any(role.kind == "batch" for role in roles):
            raise NoRuleError(f"the compiled {call.path} does not read the batch. Call the original model.")
        fakes = [
            _severed(node.meta["example_value"], role)
            for node, role in zip(graph.graph.find_nodes(op="placeholder"), roles, strict=True)
        ]
        replay = Replay(graph, roles, call.path)
        seen, recorder = _trial(replay, fakes)
        sizes = Sizes(fakes)
        likes = [(sizes.add(part.shape), part.dtype) for part in recorder.parts]
        marks = [_following(mark, sizes) for mark in seen.marks]
        slots = [_slot(fakes, part) for part in recorder.parts]
        traced = _as_graph(replay, recorder.kinds, len(slots), len(fakes), len(seen.outputs))
        compiled = self._backend(traced, [*slots, *fakes])
        return PrivateGraph(compiled, self._call, roles, recorder.kinds, sizes, likes, marks, seen)


class PrivateGraph:
    """A compiled private forward, called by dynamo's code with what the plain graph would take."""

    def __init__(
        self,
        compiled: Callable[..., Any],
        call: Callable[[], Call],
        roles: list[Role],
        kinds: list[Kind],
        sizes: Sizes,
        likes: list[tuple[int, torch.dtype]],
        marks: list[Callable[[list[tuple[int, ...]]], Mark] | None],
        seen: Seen,
    ) -> None:
        self._compiled = compiled
        self._call = call
        self._roles = roles
        self._kinds = kinds
        self._sizes = sizes
        self._likes = likes
        self._marks = marks
        self._contacts = seen.contacts
        self._tables = seen.tables

    def __call__(self, *inputs: Any) -> Any:
        call = self._call()
        found = [call.role(value) for value in inputs]
        if found != self._roles:
            raise PrivacyError(
                f"the compiled {call.path} was called with other parameters, or with the batch in other inputs, than "
                "it was compiled for. Call torch.compiler.reset(), or the original model."
            )
        call.ran += 1
        run = call.run
        for name, count in self._contacts.items():
            run.contacts[name] = run.contacts.get(name, 0) + count
        run.tables |= self._tables
        sizes = self._sizes.read(inputs)
        slots: tuple[Tensor, ...] = ()
        if self._likes:
            likes = [(torch.Size(sizes[place]), dtype) for place, dtype in self._likes]
            slots = Outside.apply(call.carrier, run, self._kinds, likes)
        outputs = self._compiled(*slots, *map(_severed, inputs, self._roles))
        for value, mark in zip(outputs, self._marks, strict=True):
            if mark is not None:
                set_mark(value, mark(sizes))
        return outputs


def _severed(value: Any, role: Role) -> Any:
    """Parameters without the way back to them: no graph can send them a gradient."""
    return value.detach() if role.kind in ("private", "constant") else value


def _trial(replay: Replay, fakes: Sequence[Any]) -> tuple[Seen, Recorder]:
    """Run forward and backward on tensors without values, to learn which uses there are."""
    recorder = Recorder()
    mode = next(value.fake_mode for value in fakes if isinstance(value, torch._subclasses.FakeTensor))
    like = next(value for value in fakes if isinstance(value, Tensor))
    with mode, torch.enable_grad():
        slot = torch.zeros((), device=like.device, requires_grad=True)
        seen = replay.run(recorder, None, [slot], fakes)
        ends = [value for value in seen.outputs if isinstance(value, Tensor) and value.requires_grad]
        if ends:
            wanted = [value for value in fakes if isinstance(value, Tensor) and value.requires_grad]
            gradients = [torch.empty_like(value) for value in ends]
            torch.autograd.grad(ends, [slot, *wanted], gradients, allow_unused=True)
    return seen, recorder


def _slot(fakes: Sequence[Any], part: Tensor) -> Tensor:
    mode = next(value.fake_mode for value in fakes if isinstance(value, torch._subclasses.FakeTensor))
    with mode:
        zero = torch.zeros((), dtype=part.dtype, device=part.device)
        return zero.expand(part.shape).requires_grad_(True)


def _following(mark: Mark | None, sizes: Sizes) -> Callable[[list[tuple[int, ...]]], Mark] | None:
    """How to find the mark of an output in a call."""
    if mark is None:
        return None
    layout = mark.layout
    if layout is None:
        return lambda _known: mark
    if layout.owner is not None:
        raise NoRuleError(
            "rows of an output of a compiled forward were picked by the values of tensors: which sample each belongs to "
            "cannot be told beforehand. Call the original model."
        )
    place = sizes.add((layout.samples, layout.outer, layout.inner))

    def found(known: list[tuple[int, ...]]) -> Mark:
        samples, outer, inner = known[place]
        return Mark(Layout(samples, layout.dim, outer, inner), mark.lost, mark.mixed, mark.reduced, mark.pointer)

    return found


def _as_graph(replay: Replay, kinds: list[Kind], slots: int, inputs: int, outputs: int) -> GraphModule:
    """A graph of one call, that of the replay: the user's backend traces into it."""

    def private_forward(*values: Any) -> tuple[Any, ...]:
        return replay.run(Recorder(), kinds, values[:slots], values[slots:]).outputs

    # A name of its own, so that no cache takes it for another forward.
    private_forward.__name__ = private_forward.__qualname__ = f"private_forward_{next(_numbers)}_{id(replay)}"
    graph = fx.Graph()
    taken = [graph.placeholder(f"slot_{i}") for i in range(slots)] + [
        graph.placeholder(f"input_{i}") for i in range(inputs)
    ]
    result = graph.call_function(private_forward, tuple(taken))
    graph.output(tuple(graph.call_function(_item, (result, i)) for i in range(outputs)))
    with contextlib.suppress(ImportError):
        pass
    return GraphModule(torch.nn.Module(), graph)


def _item(values: tuple[Any, ...], place: int) -> Any:
    return values[place]
