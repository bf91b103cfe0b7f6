"""Sharded models (FSDP2): the session's parameters are shards, and forwards run with whole ones that come and go.

``fully_shard`` gathers a module's parameters in a hook before its forward, and puts the whole tensors in the place of
the shards until they are freed. Gates stand at the shards, so a clipped sum arrives where the optimizer looks. The
whole ones must never get a gradient: FSDP would add it up over the processes and put it into the shards' ``.grad``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from tacit.capture.contact import Names
from tacit.capture.entrance import Entrance
from tacit.capture.fingerprints import Fingerprint, fingerprint, sum_fingerprint
from tacit.capture.guard import LeakGuard
from tacit.capture.marks import map_tensors, mark_of, set_mark, tensors_in
from tacit.capture.mode import Capture
from tacit.capture.passes import Pass
from tacit.distributed import Spread, check_trained, is_same_everywhere, is_spread, sharded_modules
from tacit.errors import PrivacyError


class ShardedGuard(LeakGuard):
    """Watches shards, and the whole parameters that forwards run with.

    Attributes:
        settled: a checksum over what came to pass, in its order: which parameters' sums were added up over the
            processes, left their gates, and arrived. Where processes differ in it, sums of different parameters were
            added to each other, or a backward broke off in one of them after it had sent its sums to the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settled = 0
        self._checked: set[str] = set()
        self._whole: dict[str, Tensor] = {}
        self._due: dict[str, Tensor] = {}
        self._pairs: list[tuple[str, Fingerprint, Fingerprint]] = []

    def watch(self, name: str, parameter: Tensor, node: Any = None) -> None:
        """Watch a trainable shard; also one that was frozen when the model was made private."""
        if name not in self._checked and isinstance(parameter, nn.Parameter):
            check_trained(name, parameter)
            self._checked.add(name)
        super().watch(name, parameter, node)

    def note(self, event: str) -> None:
        self.settled = zlib.crc32(event.encode(), self.settled)

    def expect(self, names: Sequence[str], gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        super().expect(names, gradients, totals)
        for name in names:
            self.note(f"gate of {name}")

    def _waits(self, gradient: Tensor) -> bool:  # noqa: ARG002
        return False  # all processes refuse at the same place

    def _prints(self, gradients: Sequence[Tensor]) -> Sequence[None]:
        return [None] * len(gradients)  # what arrives is compared with what is due

    def _before(self, name: str, parameter: Tensor) -> Callable[[tuple[Tensor, ...]], None]:
        check = super()._before(name, parameter)

        def note(gradients: tuple[Tensor, ...]) -> None:
            check(gradients)
            self._due[name] = sum_fingerprint(parameter, gradients[0], parameter.grad)

        return note

    def _after(self, name: str, parameter: Tensor) -> Callable[..., None]:
        accept = super()._after(name, parameter)

        def compare(*_: Any) -> None:
            due = self._due.pop(name, None)
            if due is not None and parameter.grad is not None:
                self._pairs.append((name, due, fingerprint(parameter.grad)))
                self.note(f"gradient of {name}")
            accept()

        return compare

    def watch_whole(self, name: str, parameter: Tensor) -> None:
        """Watch a whole parameter: no gradient may reach it.

        Raises:
            LeakError: one has done so before.
        """
        self._whole[name] = parameter
        self.check_whole([name])
        node: Any = get_gradient_edge(parameter).node
        self._nodes[f"{name} (gathered)"] = node  # autograd forgets hooks with the node

        def refuse(gradients: tuple[Tensor, ...]) -> None:
            if bool(gradients[0].any()):
                raise self.leak(name)

        self._handles.append(node.register_prehook(refuse))

    def check_whole(self, names: Iterable[str]) -> None:
        """Raise unless all gradients came through gates, which add them up over all processes, and stayed so."""
        self.refuse_changed(self._pairs)
        self._pairs.clear()
        for name in names:
            whole = self._whole.get(name)
            if whole is not None and whole.grad is not None:
                raise self.leak(name)

    def reset(self) -> None:
        super().reset()
        self.settled = 0
        self._due.clear()
        self._pairs.clear()


class Sharded:
    """What a session knows of the hooks of ``fully_shard``.

    Args:
        module: the model, whose modules own their shards.
        parameters: the private parameters by name: shards.
        names: which parameters are private; learns of the whole ones.
        guard: the leak guard.
        capture: the capture.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        names: Names,
        guard: ShardedGuard,
        capture: Capture,
    ) -> None:
        self._parameters = parameters
        self._names = names
        self._guard = guard
        self._capture = capture
        self._places = [(part, own, p) for part in module.modules() for own, p in part.named_parameters(recurse=False)]
        self._pending = list(self._places)
        self._found: dict[int, Tensor] = {}
        self._watched: set[int] = set()
        self._sent: list[Tensor] = []
        inner = sharded_modules(module)
        self._inner = {id(part) for part in inner}
        self._handles = [part.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True) for part in inner]
        names.look_again = self.look_everywhere

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._sent.clear()

    def settle(self, name: str, total: Tensor) -> Tensor:
        """Add up a parameter's clipped sum over all processes, and return this one's shard of it.

        All processes come here with the same parameters in the same order: that of their backwards, and that of gates.
        """
        parameter = self._parameters[name]
        spread = Spread.of(parameter)
        assert spread is not None  # it would not be watched
        self._guard.note(f"sum of {name}")
        wide = torch.promote_types(parameter.dtype, torch.float32)  # in all processes, whatever their uses were
        return spread.sum(total.to(wide).reshape(parameter.shape))

    def compare(self, run: Pass) -> None:
        """See whether the forwards of all processes used the same parameters, in the same order.

        If not (experts that no token of a batch was sent to), their backwards would settle different sums at once, and
        all of them wait for their gates, whose order is the same everywhere.
        """
        uses = zlib.crc32(repr(list(run.contacts.items())).encode())
        run.in_step &= is_same_everywhere(uses, next(iter(self._parameters.values())).device)

    def look(self) -> None:
        """Find the whole parameters that modules own now, in the place of their shards.

        FSDP makes each once, and frees and fills its memory from then on.
        """
        self._pending = [place for place in self._pending if not self._take(*place)]

    def look_everywhere(self) -> None:
        """The same, also where one was found before."""
        self._pending = list(self._places)
        self.look()

    def _take(self, part: nn.Module, own: str, shard: nn.Parameter) -> bool:
        """Whether all is known of a whole parameter that a module owns."""
        whole = part._parameters.get(own)
        if whole is None or whole is shard or is_spread(whole):
            return False
        name = self._names.private.get(id(shard))
        if id(whole) not in self._found:
            self._found[id(whole)] = whole  # kept, so that no other tensor gets its identity
            known = self._names.others if name is None else self._names.private
            known[id(whole)] = self._names.others.get(id(shard), own) if name is None else name
        if name is None or id(whole) in self._watched:
            return True
        if not whole.requires_grad:  # it may be trained later
            return False
        self._watched.add(id(whole))
        self._guard.watch_whole(name, whole)
        return True

    # FSDP's hook before a forward hands inputs through an autograd.Function, whose outputs are other objects.

    def _before(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Comes before FSDP's hook, which makes no other objects where gradients are off.

        What is derived from parameters goes past that hook: pulled back through it, it would free the module's own.
        """
        inside = self._capture.frame is not None and torch.is_grad_enabled()
        self._sent = tensors_in((args, kwargs)) if torch.is_grad_enabled() else []
        self._capture.seen = [] if inside else None
        if not inside or not any(map(_is_of_parameters, self._sent)):
            return None
        with torch._C.DisableTorchFunction():
            changed: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
                lambda value: value.detach() if _is_of_parameters(value) else value, (args, kwargs)
            )
        return changed

    def originals(self, entrance: Entrance, tensors: list[Tensor]) -> list[Tensor]:
        """Inputs of an outermost forward as they were before FSDP's hook cast them: rows are told by their memory.

        Raises:
            PrivacyError: another hook changed them, so that it cannot be told which they were.
        """
        sent, self._sent = self._sent, []
        if id(entrance.module) not in self._inner or _memories(sent) == _memories(tensors):
            return tensors
        if [value.shape for value in sent] != [value.shape for value in tensors]:
            raise PrivacyError(
                f"a hook before the forward of {entrance.path} changed its inputs, and fully_shard cast them: which "
                "rows of memory they came from cannot be told, and so not whether rows are seen twice. Change inputs "
                "before the call, or within the forward."
            )
        return sent

    def forget(self) -> None:
        """A forward begins that is not private: what its hook was given is of no use."""
        self._sent.clear()

    def received(
        self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a module is given within a forward, as it was before FSDP's hook: marked, or derived from parameters.

        A tensor that is the same memory, read the same way, has the same numbers, and so the same samples in them.
        """
        if self._capture.seen is None:
            return args, kwargs
        sent, seen, self._sent, self._capture.seen = self._sent, self._capture.seen, [], None
        given = tensors_in((args, kwargs))
        with torch._C.DisableTorchFunction():
            for value in given:
                _mark_again(value, [*sent, *seen])
        swapped: dict[int, Tensor] = {}
        for place, value in enumerate(sent):
            if not _is_of_parameters(value):
                continue
            if len(given) != len(sent) or not _is_same(given[place], value):
                raise PrivacyError(
                    f"the inputs of {entrance.path} changed in a hook before its forward, and one of them was made of "
                    "parameters alone: which one it is now cannot be told. Change inputs within a forward."
                )
            swapped[id(given[place])] = value if value.dtype == given[place].dtype else value.to(given[place].dtype)
        if not swapped:
            return args, kwargs
        changed: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
            lambda value: swapped.get(id(value), value), (args, kwargs)
        )
        return changed

    def check_outputs(self, entrance: Entrance, out: Any) -> None:
        """Refuse that a sharded module hands out what is made of its parameters alone.

        Where it is used its gradients by sample would be pulled back through FSDP's hooks, out of their order.

        Raises:
            PrivacyError: it does.
        """
        if id(entrance.module) not in self._inner:
            return
        for value in tensors_in(out):
            if _is_of_parameters(value):
                raise PrivacyError(
                    f"{entrance.path} hands out a tensor {tuple(value.shape)} made of parameters alone, for use in "
                    "other modules, in whose backward its parameters are freed. Do not call fully_shard on this one, "
                    "but on a module that also holds those that use it."
                )


def _memories(tensors: list[Tensor]) -> list[tuple[Any, ...] | None]:
    return [_memory(value) if value.layout == torch.strided else None for value in tensors]


def _is_of_parameters(value: Tensor) -> bool:
    return value.requires_grad and mark_of(value) is None


def _is_same(value: Tensor, known: Tensor) -> bool:
    """Whether a tensor is another, or what FSDP has cast it to."""
    with torch._C.DisableTorchFunction():
        if value.dtype == known.dtype:
            return value.shape == known.shape and value.data_ptr() == known.data_ptr()
        return torch.equal(value.detach(), known.detach().to(value.dtype))


def _mark_again(value: Tensor, before: list[Tensor]) -> None:
    """Give a tensor the mark that it had as one of ``before``."""
    if mark_of(value) is not None or value.layout != torch.strided:
        return
    memory = _memory(value)
    known = [(one, mark) for one in before if (mark := mark_of(one)) is not None and one.layout == torch.strided]
    marks = [mark for one, mark in known if _memory(one) == memory]
    if marks and all(mark == marks[0] for mark in marks):
        set_mark(value, marks[0])


def _memory(value: Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.shape, value.stride(), value.dtype
