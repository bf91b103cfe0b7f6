"""A session: one private model, from attach to detach."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tacit.capture.boundary import bounded
from tacit.capture.compiled import Regions
from tacit.capture.contact import Frame, Names
from tacit.capture.entrance import Entrance, Entrances
from tacit.capture.gates import make_carrier, tie
from tacit.capture.guard import LeakGuard
from tacit.capture.inputs import batch_size, check_blank, empty_outputs, one_sample, size_of
from tacit.capture.losses import refuse_batch_counts
from tacit.capture.marks import Mark, clear_mark, keep_mark, map_tensors, mark_of, set_mark, tensors_in
from tacit.capture.passes import Clip, ClippedSums, Pass, current_task
from tacit.capture.recomputation import Recomputation
from tacit.capture.running import Runner
from tacit.capture.sharded import Sharded, ShardedGuard
from tacit.capture.units import units_of
from tacit.distributed import is_spread, local
from tacit.errors import MemoryBudgetError, MixingError, PrivacyError, SecondBackwardError
from tacit.sampling import Piece
from tacit.uses import SHARE, Layout, Room, Units, Use, Workspace, free_memory

_WHOLE_APART = (
    'grad_sample_mode="functorch" runs the whole model under torch.vmap, sample by sample. Use "auto" to compile it.'
)


class Session:
    """Watches a model's forwards and hands the uses of each backward to ``clip``.

    Args:
        module: the model.
        parameters: the private parameters by name: those that the private optimizer steps.
        clip: called once per backward, after all rules have recorded.
        batch_first: whether inputs carry the batch in dimension 0 (else 1).
        at_hand: which physical batch is at hand, and how many rows or units it has; None if none was drawn.
        memory_budget: how many bytes may be held until the clip; where they are too few, two passes are run. If None,
            memory that is free decides between forms of what is held, and there is one pass.
        measured: choose forms of matrix products by timing them, not by prediction.
        apart: run every forward on one copy of the parameters for each sample.
        guard: watches the gradients; by default those of one process. With a `ShardedGuard` the parameters are shards:
            ``fully_shard`` was applied to the model.
        entered: called when a private forward begins.

    Attributes:
        synthetic: what the coming forwards see are no records.
        index: the unit of privacy of each row of the coming forwards, as the user says.
        index_of_batch: the same, as the batch at hand says.
        padding: how many blank rows stand behind the records of the batch at hand.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        clip: Clip,
        *,
        batch_first: bool,
        at_hand: Callable[[], tuple[Piece, int] | None],
        apart: bool = False,
        memory_budget: int | None = None,
        measured: bool = False,
        guard: LeakGuard | None = None,
        entered: Callable[[], None] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.guard = LeakGuard() if guard is None else guard
        self._entered = entered
        self.enabled = True
        self._clip = clip
        self._measured = measured
        self._limited = memory_budget is not None
        device = next(iter(parameters.values())).device
        self._limit = free_memory(device) / SHARE if memory_budget is None else float(memory_budget)
        # Kept memory lies beside the activations of the next forward: not where somebody has set a limit.
        self._workspace = Workspace() if memory_budget is None and device.type == "cpu" else None
        self._batch_dim = 0 if batch_first else 1
        others = {name: p for name, p in module.named_parameters() if name not in self.parameters}
        names = Names(dict(self.parameters), dict(others))
        sharded = guard if isinstance(guard, ShardedGuard) else None
        self._runner = Runner(names, self._state_at, apart=apart, never_apart=sharded is not None)
        self._sharded = (
            None if sharded is None else Sharded(module, self.parameters, names, sharded, self._runner.capture)
        )
        self._recomputation = Recomputation(self._runner)
        self._at_hand = at_hand
        self._addresses: dict[int, str] | None = None
        self.synthetic = False
        self.index: Tensor | None = None
        self.index_of_batch: Tensor | None = None
        self.padding = 0
        self._constants: dict[Entrance, set[int]] = {}
        self._current: tuple[Pass, Tensor, tuple[object, ...]] | None = None
        self._clipped_task = -1
        self._entrances = Entrances(module, self)
        self._regions = Regions(
            self._runner.capture.names, self._entrances.stepped_aside, never=_WHOLE_APART if apart else ""
        )
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                self.guard.watch(name, parameter)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def open_pass(self) -> tuple[Pass, Tensor] | None:
        """The pass whose forward ran and whose backward did not, and its carrier."""
        return None if self._current is None else self._current[:2]

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over processes: all of them must then run as many passes."""
        return self._sharded is not None

    @property
    def passing(self) -> bool:
        return self._entrances.aside

    def forget(self) -> None:
        """Let the next forward begin a new pass."""
        self._current = None

    def detach(self) -> None:
        self.enabled = False
        self._entrances.remove()
        if self._sharded is not None:
            self._sharded.remove()
        self.guard.remove()
        self._recomputation.forget()
        self._regions.forget()
        self.forget()

    # Entering a module

    def enter(self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        capture = self._runner.capture
        frame = capture.frame
        if self._regions.running:  # entered by a way that was not put aside
            raise PrivacyError(
                f"{entrance.path} ran outside the graph that was compiled of its model, where nobody sees it. Call the "
                "original model."
            )
        if capture.apart:
            return entrance.inner(*args, **kwargs)
        if frame is not None:
            if self._sharded is None:
                return self._recomputation.watch(frame, entrance, args, kwargs)
            args, kwargs = self._sharded.received(entrance, args, kwargs)
            out = self._recomputation.watch(frame, entrance, args, kwargs)
            self._sharded.check_outputs(entrance, out)
            return out
        if torch.compiler.is_compiling():
            raise NotImplementedError("a private model cannot be exported or traced: detach() it first.")
        if not (self.enabled and torch.is_grad_enabled()):
            self._recomputation.note(entrance)
            return entrance.inner(*args, **kwargs)
        if not entrance.module.training:
            self.guard.unwatched_forward = entrance.path
            if self._sharded is not None:
                self._sharded.look()
                self._sharded.forget()
            return entrance.inner(*args, **kwargs)
        if current_task() != -1:
            return self._recomputation.run(entrance, args, kwargs, self._device)
        return self._outermost(entrance, args, kwargs)

    def enter_compiled(self, entrance: Entrance, callback: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module that torch.compile calls."""
        if self._sharded is not None:
            raise NotImplementedError(
                f"{entrance.path} runs under torch.compile, and its parameters are sharded (fully_shard): the two are "
                "not supported together. Leave torch.compile out, or use DistributedDataParallel."
            )
        if self._runner.capture.frame is not None and not self._runner.capture.apart:
            self._regions.uncompiled(callback, entrance)
            return self.enter(entrance, args, kwargs)
        if self._regions.running or self._runner.capture.apart or current_task() != -1:
            return self.enter(entrance, args, kwargs)
        if self.enabled and torch.is_grad_enabled():
            if entrance.module.training:
                return self._outermost(entrance, args, kwargs, callback)
            self.guard.unwatched_forward = entrance.path
        return self._regions.run_plain(callback, entrance, args, kwargs)

    def _outermost(
        self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any], callback: Any = None
    ) -> Any:
        if self._entered is not None:
            self._entered()
        refuse_batch_counts(kwargs, entrance.path)
        tensors = tensors_in((args, kwargs))
        samples = self._samples(entrance, tensors)
        trainable = [name for name, p in self.parameters.items() if p.requires_grad]
        if samples is None or not trainable:
            return entrance.inner(*args, **kwargs)
        if samples == 0:
            args, kwargs = one_sample((args, kwargs), self._batch_dim)
            tensors = tensors_in((args, kwargs))
        units = self._units(samples)
        run, carrier = self._open(max(samples, 1), trainable, units, dummy=samples == 0)
        before = run.promises(), run.plain_only, run.bounded
        run.plain_only |= any(t.requires_grad for t in tensors)
        fresh = [t for t in tensors if mark_of(t) is None]
        try:
            self._mark_batch(entrance, tensors, run)
            self._recomputation.remember(entrance, run, args, kwargs)
            frame = Frame(run, carrier)
            as_it_is = functools.partial(self._runner.until_it_fits, frame, entrance, args, kwargs, self._device)
            if callback is None:
                out = as_it_is()
            elif self._limited and self._clip.holds:
                raise MemoryBudgetError(
                    "what a compiled forward will hold for the clip is not known beforehand, and two passes cannot be "
                    "run over it. Call the original model, use clipping='per_layer', or leave memory_budget out."
                )
            else:
                out = self._regions.run(callback, frame, entrance, args, kwargs, as_it_is)
            run.room.open()
            if run.bounded or (self._limited and self._clip.holds and run.room.exceeded):
                out = self._behind_boundary(run, carrier, out)
            elif run.plain_only:
                out = map_tensors(lambda value: keep_mark(value, tie(carrier, value)), out)
        except BaseException:  # the pass is as if this forward had not been
            promises, run.plain_only, run.bounded = before
            run.take_back(promises)
            raise
        finally:
            for value in fresh:
                clear_mark(value)
        run.forwards += 1
        if self._sharded is not None and self._clip.makes_sums_early:
            self._sharded.compare(run)
        self._look_after_forward()
        return empty_outputs(out) if samples == 0 else out

    def _behind_boundary(self, run: Pass, carrier: Tensor, out: Any) -> Any:
        """Let two passes be run over a forward that would hold too much."""
        if run.forwards and not run.bounded:
            raise MemoryBudgetError(
                "the forwards before this backward would hold more for the clip than memory_budget, and only the first "
                "would not. Use grad_sample_mode='ghost', clipping='per_layer' or smaller physical batches "
                "(BatchMemoryManager), or raise memory_budget."
            )
        run.bounded = run.room.each = True
        return bounded(out, run, carrier, self.guard)

    def _samples(self, entrance: Entrance, tensors: list[Tensor]) -> int | None:
        at_hand = None if self.synthetic else self._at_hand()
        expected = None if at_hand is None else at_hand[1]
        index = self._index()
        if index is not None:
            expected = len(index)
        return batch_size(tensors, self._batch_dim, expected, self._constants.get(entrance, ()))

    def _index(self) -> Tensor | None:
        """The unit of each row of the batch, if the user has said so."""
        return self.index if self.index is not None or self.synthetic else self.index_of_batch

    def _units(self, samples: int) -> Units | None:
        index = self._index()
        if index is None or samples == 0:
            return None
        at_hand = None if self.synthetic else self._at_hand()
        return units_of(index, samples, None if at_hand is None else at_hand[1])

    def _mark_batch(self, entrance: Entrance, tensors: list[Tensor], run: Pass) -> None:
        batch = self._batch_inputs(entrance, tensors, run.samples)
        own = tensors
        if self._sharded is not None and not run.dummy:  # that one is made up
            own = self._sharded.originals(entrance, tensors)
        run.inputs += [known for value, known in zip(tensors, own, strict=True) if batch and value is batch[0]][:1]
        if run.padding > 1:
            check_blank(batch, self._batch_dim, run.padding)
        for value in batch:
            set_mark(value, Mark(Layout(run.samples, self._batch_dim if value.dim() > self._batch_dim else 0)))

    def _batch_inputs(self, entrance: Entrance, tensors: list[Tensor], samples: int) -> list[Tensor]:
        """The inputs that carry the batch.

        An input that once had another size than the batch (a mask (T, T), position ids (T,)) is a constant for good,
        also in a batch of just that size.
        """
        constants = self._constants.setdefault(entrance, set())
        found = []
        for place, value in enumerate(tensors):
            size = size_of(value, self._batch_dim)
            if size is not None and size != samples:
                constants.add(place)
            elif size is not None and place not in constants and mark_of(value) is None:
                found.append(value)
        return found

    def _look_after_forward(self) -> None:
        self._addresses = None
        if self._sharded is not None:
            self._sharded.look()  # the loss might use a parameter that no call in the forward did
        self._refuse_marked_state()

    def _refuse_marked_state(self) -> None:
        for entrance in self._entrances:
            for name, value in _state_of(entrance.module):
                if mark_of(value) is not None:
                    raise MixingError(
                        f"the forward of {entrance.path} left something computed from the batch in "
                        f"`{name}`, which is saved with the model without noise. Freeze the update, or "
                        "keep the value outside the model."
                    )

    def _open(self, samples: int, trainable: list[str], units: Units | None, *, dummy: bool) -> tuple[Pass, Tensor]:
        """Return the pass that a forward joins: the open one if it fits, else a new one."""
        at_hand = self._at_hand()
        owners = None if units is None else tuple(units.owner.tolist())
        key = (samples, owners, dummy, at_hand, *trainable)
        if self._current is not None:
            run, carrier, known = self._current
            # Rows are matched by their place, so both forwards must have seen the whole batch at hand.
            records = samples if units is None else units.count
            whole = at_hand is None or self.synthetic or dummy or records == at_hand[1]
            if not run.finished and known == key and whole:
                run.synthetic &= self.synthetic
                return run, carrier
        padded = at_hand is not None and samples == at_hand[1] and not (self.synthetic or dummy)
        padding = self.padding if padded else 0
        run = Pass(
            samples,
            self._on_finished,
            early=self._clip.early,
            room=Room(self._limit, each=not self._clip.holds, measured=self._measured, workspace=self._workspace),
            dummy=dummy,
            synthetic=self.synthetic,
            units=units,
            padding=padding,
            piece=None if at_hand is None else at_hand[0],
            settle=(lambda _, total: total) if self._sharded is None else self._sharded.settle,
        )
        chosen = {name: self.parameters[name] for name in trainable}
        carrier = make_carrier(run, chosen, self.guard)
        self._current = run, carrier, key
        return run, carrier

    # The end of a pass

    def _on_finished(self, run: Pass, uses: Mapping[str, list[Use]]) -> ClippedSums:
        task = current_task()
        if task != -1 and task == self._clipped_task:
            raise SecondBackwardError(
                "one backward() reached two private forwards whose samples cannot be matched: batches of different "
                "sizes, or pieces of one batch. Each would be clipped by itself. Give both forwards the whole batch at "
                "hand (split it with BatchMemoryManager), or call backward() after each forward."
            )
        self._clipped_task = task
        self._recomputation.finished()
        if self._current is not None and self._current[0] is run:
            self._current = None
        clipped = self._clip(run, uses)
        run.inputs.clear()
        return clipped

    def _state_at(self, tensor: Tensor) -> str | None:
        """The name of the parameter or buffer whose storage a tensor is in."""
        if tensor.is_meta:  # nothing is stored, and all have one address
            return None
        if self._addresses is None:
            self._addresses = {
                local(value).untyped_storage().data_ptr(): f"{entrance.path}.{name}"
                for entrance in self._entrances
                for name, value in _state_of(entrance.module)
                if self._sharded is None or is_spread(value) or name in entrance.module._buffers  # others are freed
            }
        return self._addresses.get(tensor.untyped_storage().data_ptr())


def _state_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    held = (*module._buffers.items(), *module._parameters.items())
    return [(name, value) for name, value in held if value is not None]
