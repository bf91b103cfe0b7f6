"""Runs the graph that dynamo made of a forward, under the capture, once more: call by call, as the module would."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import Argument, Target

from tacit.capture.compiled.call import Kind, Role
from tacit.capture.compiled.parts import Form
from tacit.capture.compiled.recorder import Inside, Recorder
from tacit.capture.contact import Frame, Names
from tacit.capture.graphs import nodes_behind
from tacit.capture.inputs import refuse_lost_outputs, refuse_mixed_outputs, refuse_unseen_outputs
from tacit.capture.marks import Mark, mark_of, set_mark, tensors_in
from tacit.capture.mode import Capture
from tacit.capture.passes import Pass
from tacit.capture.views import storage_of
from tacit.errors import LeakError, NoRuleError
from tacit.uses import Layout

CHECKPOINT = "tag_activation_checkpoint"


@dataclass(slots=True)
class Seen:
    """What one replay found out.

    Attributes:
        outputs: what the graph returns.
        marks: the mark of each output.
        contacts: how many uses of each parameter were promised.
        tables: parameters of which rows were looked up.
        narrow, narrow_sums: the narrow types in which something of the batch is, and in which sums over it are.
    """

    outputs: tuple[Any, ...]
    marks: list[Mark | None] = field(default_factory=list)
    contacts: dict[str, int] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    narrow: set[torch.dtype] = field(default_factory=set)
    narrow_sums: set[torch.dtype] = field(default_factory=set)


class Replay:
    """One forward, as a graph.

    Args:
        graph: what dynamo made of it.
        roles: what its inputs are.
        path: the name of the module, for errors.
        where: its name and kind.
    """

    def __init__(self, graph: GraphModule, roles: Sequence[Role], path: str, where: str) -> None:
        self._graph = graph
        self._roles = list(roles)
        self._path = path
        self._where = where
        self._steps = _Steps(graph, where)

    def here(self) -> str:
        """Name the module that a call came from, the last that was looked at."""
        return self._steps.here()

    def run(self, recorder: Recorder, forms: list[Form] | None, slots: Sequence[Tensor], inputs: Sequence[Any]) -> Seen:
        """Run the forward.

        Args:
            recorder: takes the uses, in the backward.
            forms: what they will be; None if that is still to be found out.
            slots: what the carrier is made of.
            inputs: what the graph takes, without graphs of their own behind parameters.

        Raises:
            PrivacyError: as the capture does.
        """
        steps = self._steps = _Steps(self._graph, self._where)
        given, private = self._prepared(inputs)
        # Without slots there are no uses: the trial has found that nothing wants a gradient.
        carrier: Tensor = Inside.apply(recorder, forms, *slots) if slots else torch.zeros(())
        samples = next(v.shape[r.dim] for v, r in zip(inputs, self._roles, strict=True) if r.kind is Kind.BATCH)
        run = Pass(samples, _never)
        run.sink = recorder.take
        state = (Kind.PRIVATE, Kind.CONSTANT)
        held = {storage_of(v) for v, r in zip(given, self._roles, strict=True) if r.kind in state}
        capture = Capture(
            Names(dict(private), {}),
            lambda tensor: "a parameter or buffer" if storage_of(tensor) in held else None,
            steps.here,
            lambda _error, _trainable: None,
        )
        capture.frame = Frame(run, carrier, traced=True)
        for value, role in zip(given, self._roles, strict=True):
            if role.kind is Kind.BATCH:
                set_mark(value, Mark(Layout(samples, role.dim)))
        steps.capture = capture
        outputs = steps.run(*given)
        recorder.forward_done = True
        self._check(outputs, given, private)
        marks = [mark_of(value) for value in outputs]
        return Seen(tuple(outputs), marks, dict(run.contacts), set(run.tables), run.narrow, run.narrow_sums)

    def _prepared(self, inputs: Sequence[Any]) -> tuple[list[Any], list[tuple[str, Tensor]]]:
        """Parameters become leaves of their own, so that no gradient can reach the real ones but through a slot."""
        given, private = [], []
        for value, role in zip(inputs, self._roles, strict=True):
            if role.kind is Kind.PRIVATE:
                value = value.detach().requires_grad_(True)
                private.append((role.name, value))
            elif role.kind is Kind.BATCH:
                value = value.view_as(value)  # the mark belongs to this replay
            given.append(value)
        return given, private

    def _check(self, outputs: Sequence[Any], given: Sequence[Any], private: Sequence[tuple[str, Tensor]]) -> None:
        refuse_mixed_outputs(outputs, self._path)
        refuse_lost_outputs(outputs, self._path)
        self._refuse_leaks(outputs, {id(leaf): name for name, leaf in private})
        refuse_unseen_outputs(outputs, given, self._path)

    def _refuse_leaks(self, outputs: Sequence[Any], leaves: dict[int, str]) -> None:
        """Follow the outputs' graph down: a parameter there was met by a call that nobody saw."""
        for node in nodes_behind(value.grad_fn for value in tensors_in(outputs)):
            leaf = getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None
            if leaf is not None and id(leaf) in leaves:
                raise LeakError(
                    f"an output of the compiled {self._path} depends on the parameter {leaves[id(leaf)]!r} in a way "
                    "that does not pass the clipping: it was used in a call that was not seen, or an output is "
                    "computed from parameters alone. Call the original model, which says more."
                )


def _never(*_: Any) -> Any:
    raise AssertionError("a traced pass is not clipped")


class _Steps(Interpreter):
    """Runs a graph, and knows which module each call came from."""

    def __init__(self, graph: GraphModule, where: str) -> None:
        super().__init__(graph)
        self._top = where
        self._where = where
        self.capture: AbstractContextManager[Any] = nullcontext()

    def here(self) -> str:
        return self._where

    def run_node(self, n: Node) -> Any:
        stack = n.meta.get("nn_module_stack")
        if n.op.startswith("call"):
            self._where = self._top
        if stack and n.op.startswith("call"):
            name, kind = next(reversed(stack.values()))
            found = _plain(name)
            self._where = f"{found}, {getattr(kind, '__name__', kind)}.forward" if found else self._top
        return super().run_node(n)

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, torch._ops.HigherOrderOperator):
            if target.name() != CHECKPOINT:
                raise NoRuleError(
                    f"`{target.name()}` in {self._where} is an operator with a graph inside, in which uses of "
                    "parameters cannot be seen. Call the original model, or move it out of the compiled one."
                )
            return self._opened(args)
        with self.capture:  # for the call alone: the interpreter looks at tensors, too
            return super().call_function(target, args, kwargs)

    def call_method(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        with self.capture:
            return super().call_method(target, args, kwargs)

    def _opened(self, args: tuple[Any, ...]) -> Any:
        """Run what a checkpoint would recompute: its parameters must be seen."""
        body, *inputs = args
        assert isinstance(body, GraphModule)
        inner = _Steps(body, self._where)
        inner.capture = self.capture
        return inner.run(*inputs)

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        raise NoRuleError(f"{self._where}: a call of the module {target}, which was not traced.")


def _plain(name: Any) -> str:
    """``L['self']._modules['fc']`` and the like → ``fc``."""
    found = str(name)
    for piece in ("L['self'].", "L['inner'].__self__.", "_modules['", "']"):
        found = found.replace(piece, "")
    return found
