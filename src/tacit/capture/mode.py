"""The torch-function mode that sees every call of a private forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tacit.capture.apart import LOOKUPS, as_functional, embedding_apart, refuse_strides
from tacit.capture.contact import CaptureContact, Frame, Names
from tacit.capture.crossings import crossing_of
from tacit.capture.derived import is_derived, note_derived, note_made, unseen_error
from tacit.capture.escapes import Escapes
from tacit.capture.follow import VIEW_GETTERS, follow
from tacit.capture.frames import in_autograd_function, in_reentrant_checkpoint
from tacit.capture.losses import COUPLING, uncoupled_mean
from tacit.capture.marks import Mark, clear_mark, mark_of, set_mark, tensors_in
from tacit.capture.overwritten import Overwritten, stale_error
from tacit.capture.views import embed_once, note_view
from tacit.capture.writes import check_written, keeps_aliases, mark_written, moved_error
from tacit.errors import LayoutError, MixingError, NoRuleError, PrivacyError
from tacit.rules import find_rule, is_always_rewritten, refuse_batch_statistics
from tacit.uses import NARROW

_BATCH_NORMS = frozenset([F.batch_norm, torch.batch_norm, torch.native_batch_norm])
_INSTANCE_NORMS = frozenset([F.instance_norm, torch.instance_norm])
_STATISTICS = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training"),
    F.instance_norm: ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats"),
}
_NATIVE_STATISTICS = ("input", "weight", "bias", "running_mean", "running_var", "training")
_ASKS = frozenset(
    [
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.stride, Tensor.element_size),
        *(Tensor.is_contiguous, Tensor.is_floating_point, Tensor.is_complex, Tensor.storage_offset),
        *(getattr(Tensor, name).__get__ for name in "shape dtype device ndim requires_grad is_leaf layout".split()),
    ]
)
"""What a tensor is, and nothing of its numbers. Models ask this more often than they compute."""
_FACTORIES = frozenset([torch.zeros, torch.ones, torch.empty, torch.arange, torch.rand, torch.randn])
_COUPLED = _BATCH_NORMS | _INSTANCE_NORMS | frozenset(COUPLING)
_FORM_ONLY = frozenset([Tensor.expand_as, Tensor.view_as, Tensor.reshape_as, Tensor.type_as, Tensor.to])
_NOT_IN_PLACE = ("__invert__", "__index__", "__int__", "__iter__")


class Capture(TorchFunctionMode):
    """Marks what depends on the batch, and sends calls that mix it with parameters to their rules.

    Attributes:
        frame: the forward that is running.
        names: which parameters are private.
        apart: what to do while a module runs on single samples. "on": look at calls, for what comes from outside the
            module; "strict": it runs for its values only, so that all that has a gradient comes from outside; "off":
            the engine itself prepares such a run; "": no module does.
        seen: takes the tensors of the batch that calls put out; None if nobody asks for them.
        escapes: watches those that combine samples.

    Args:
        names: which parameters are private.
        state_at: names the parameter or buffer that a tensor is part of.
        describe_module: names the module that is running.
        failed: is told of an error in a call, and of the call's parameters, before it is raised.
    """

    def __init__(
        self,
        names: Names,
        state_at: Callable[[Tensor], str | None],
        describe_module: Callable[[], str],
        failed: Callable[[NoRuleError | LayoutError, Sequence[Tensor]], None],
    ) -> None:
        super().__init__()
        self.frame: Frame | None = None
        self.names = names
        self.apart = ""
        self.seen: list[Tensor] | None = None
        self.failed = failed
        self._state_at = state_at
        self._describe_module = describe_module
        self.escapes = Escapes()
        self._overwritten = Overwritten()
        self._in_rule = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ASKS:
            return func(*args, **kwargs)
        if func in _FACTORIES and not _counts_from(func, args, kwargs):  # the batch may say how large, at most
            return note_made(func(*args, **kwargs))
        if self._overwritten.any and self._overwritten.are_read(func, args, kwargs, apart=bool(self.apart)):
            self._refuse(stale_error(func, self._describe_module()), [])
        if func in LOOKUPS:
            args, kwargs = as_functional(*args, **kwargs)
            func = F.embedding
        if self.apart:
            refuse_strides(func, args)
            if self.apart != "off":
                self._look_on(func, args, kwargs)
            out = embedding_apart(*args, **kwargs) if func is F.embedding else func(*args, **kwargs)
            self._note_type(out)
            return out
        marked: list[Tensor] = []
        trainable: list[Tensor] = []
        _sort(args, marked, trainable)
        if kwargs:
            _sort(tuple(kwargs.values()), marked, trainable)
        if marked and func in _FORM_ONLY:  # the second operand lends its shape or type only
            marked, trainable = (marked, []) if mark_of(args[0]) is not None else ([], trainable)
        if not marked:
            return self._unmarked_call(func, args, kwargs, trainable) if trainable else func(*args, **kwargs)
        return self._call_on_batch(func, args, kwargs, marked, trainable)

    def _call_on_batch(
        self, func: Callable[..., Any], args: Any, kwargs: Any, marked: list[Tensor], trainable: list[Tensor]
    ) -> Any:
        if func in _COUPLED:
            mean = self._look_at_coupled(func, args, kwargs, trainable)
            if mean is not None:
                # Its divisor is none that all samples have a part in.
                self._mark_outputs(func, marked, args, kwargs | {"reduction": "sum"}, mean)
                return mean
        differentiated = bool(trainable) and (torch.is_grad_enabled() or in_reentrant_checkpoint())
        if differentiated or (is_always_rewritten(func) and self.frame is not None):
            try:
                out = self._contact(func, args, kwargs, trainable)
            except (NoRuleError, LayoutError) as error:
                self.failed(error, trainable)
                raise
        else:
            if trainable and not _only_asks(func) and in_autograd_function():
                self._refuse(unseen_error(self._describe_module()), trainable)
            out = func(*args, **kwargs)
        self._mark_outputs(func, marked, args, kwargs, out)
        return out

    def _look_at_coupled(
        self, func: Callable[..., Any], args: Any, kwargs: Any, trainable: list[Tensor]
    ) -> Tensor | None:
        """Refuse statistics over the batch. Of a loss, return its mean where it is not what the call would compute."""
        if func not in COUPLING:
            self._refuse_statistics(func, args, kwargs)
        elif not trainable:
            traced = self.frame is not None and self.frame.traced
            return uncoupled_mean(func, args, kwargs, self._describe_module(), traced=traced)
        return None

    def _contact(self, func: Callable[..., Any], args: Any, kwargs: Any, trainable: list[Tensor]) -> Any:
        assert self.frame is not None
        if _only_asks(func):
            return func(*args, **kwargs)
        contact = CaptureContact(
            func, self.frame, self.names, self._describe_module, trainable, self.__torch_function__
        )
        rule = find_rule(func)
        if not contact.private:
            plain = {id(value) for value in trainable}
            args, kwargs = _detached(args, plain), _detached(kwargs, plain)
            if rule is not None and is_always_rewritten(func):
                with contextlib.suppress(PrivacyError):  # nothing here is private: the batch may get lost
                    return self._by_rule(rule, contact, args, kwargs)
            return func(*args, **kwargs)
        if rule is None:
            contact.refuse("this function is not known to the engine")
        return self._by_rule(rule, contact, args, kwargs)

    def _by_rule(self, rule: Callable[..., Any], contact: CaptureContact, args: Any, kwargs: Any) -> Any:
        """Run a rule: what it calls on the way need not show its samples, for the rule knows them."""
        outer, self._in_rule = self._in_rule, True
        try:
            return rule(contact, *args, **kwargs)
        finally:
            self._in_rule = outer

    def _unmarked_call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], trainable: list[Tensor]
    ) -> Any:
        """A call on parameters and constants alone: autograd builds its graph as usual."""
        if _only_asks(func) and func not in VIEW_GETTERS:
            return func(*args, **kwargs)
        unseen = torch._C._functorch.peek_interpreter_stack() is not None
        # What crossed a checkpoint is looked at when it is recomputed.
        hidden = func is Tensor.detach or not torch.is_grad_enabled()
        if unseen or not all((hidden and crossing_of(value)) or is_derived(value) for value in trainable):
            self._refuse(unseen_error(self._describe_module()), trainable)
        out = embed_once(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
            note_view(func, args, out)
        for value in tensors_in(out):
            note_derived(value)
        return out

    def _refuse(self, error: NoRuleError | LayoutError, trainable: list[Tensor]) -> NoReturn:
        self.failed(error, trainable)
        raise error

    def _look_on(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Refuse what a module that runs on single samples takes from outside: it would belong to all of them."""
        if func in _BATCH_NORMS or func in _INSTANCE_NORMS:
            self._refuse_statistics(func, args, kwargs)
        if func is Tensor.detach or (func.__name__ == "__get__" and func not in VIEW_GETTERS):
            return
        for value in tensors_in((args, kwargs)):
            foreign = id(value) in self.names.private or (self.apart == "strict" and value.requires_grad)
            if mark_of(value) is not None or (foreign and value.requires_grad):
                error = NoRuleError(
                    f"`{func.__name__}` in {self._describe_module()}, which runs on each sample alone, reads a tensor "
                    f"{tuple(value.shape)} that is neither among its arguments nor a parameter of its own."
                )
                self._refuse(error, [value])

    def _mark_outputs(self, func: Any, marked: list[Tensor], args: Any, kwargs: Any, out: Any) -> None:
        if isinstance(out, Tensor) and not _writes(func.__name__) and "out" not in kwargs:  # as almost all
            self._look_at(out, self._mark(func, marked, args, kwargs, out))
            if self.seen is not None:
                self.seen.append(out)
            return
        outputs = [out] if isinstance(out, Tensor) else tensors_in(out)
        targets = _written(func, args, kwargs) if _writes(func.__name__) or "out" in kwargs else ()
        before = [mark_of(target) for target in targets]
        for target in targets:
            if mark_of(target) is None:  # in-place activations, the common case, are marked already
                self._refuse_state(func, target)
                mark_written(func, target, marked, args)
                self._overwritten.add(target)
                outputs = [value for value in outputs if value is not target]
            elif func is Tensor.__setitem__:
                check_written(target, args)
        for value in outputs if out is not None else ():
            self._mark(func, marked, args, kwargs, value)
        for target, mark in zip(targets, before, strict=True):
            if not keeps_aliases(func, target, mark, marked):
                self._refuse(moved_error(func, self._describe_module()), [])
        for value in (*outputs, *targets):
            self._look_at(value, mark_of(value))
        if self.seen is not None and out is not None:
            self.seen += outputs

    def _mark(self, func: Any, marked: list[Tensor], args: Any, kwargs: Any, value: Tensor) -> Mark | None:
        """Mark one output, and return its mark."""
        known = mark_of(value)
        if known is not None and not any(value is source for source in marked):
            return known  # a rule made it of calls that were followed
        mark = follow(func, marked, args, kwargs, value)
        self._note_type(value, mark)
        if mark is None:
            clear_mark(value)
        elif mark is not known:
            set_mark(value, mark)
            if mark.layout is None:
                self._overwritten.watch(value)
        return mark

    def _note_type(self, value: object, mark: Mark | None = None) -> None:
        """Tell the pass of what is in low precision."""
        if isinstance(value, Tensor) and value.dtype in NARROW and self.frame is not None:
            self.frame.run.narrow.add(value.dtype)
            if mark is not None and mark.reduced and value.requires_grad:
                self.frame.run.narrow_sums.add(value.dtype)

    def _look_at(self, value: Tensor, mark: Mark | None) -> None:
        if mark is None or mark.layout is not None or self._in_rule:  # as almost all
            return
        if self.frame is not None and not self.frame.traced:  # a graph shows all that leaves it
            self.escapes.look_at(value, mark, self._describe_module)

    def _refuse_state(self, func: Any, target: Tensor) -> None:
        name = self._state_at(target)
        if name is not None:
            raise MixingError(
                f"`{func.__name__}` in {self._describe_module()} writes something computed from the batch into "
                f"`{name}`, which is saved with the model without noise. Freeze the update, or keep "
                "the value outside the model."
            )

    def _refuse_statistics(self, func: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip(_STATISTICS.get(func, _NATIVE_STATISTICS), args, strict=False)) | kwargs
        where = f"`{func.__name__}` in {self._describe_module()}"
        if func in _INSTANCE_NORMS:
            own = given.get("use_input_stats", given.get("training", True))
            refuse_batch_statistics(where, given.get("running_mean") if own else None, training=False)
        else:
            refuse_batch_statistics(where, None, training=bool(given.get("training", False)))


def _counts_from(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the batch says with what a range begins, or its steps, which are numbers of it."""
    if func is not torch.arange:
        return False
    start = args[:1] if len(args) > 1 or "end" in kwargs else ()
    return any(map(mark_of, (*start, *args[2:], kwargs.get("start"), kwargs.get("step"))))


def _only_asks(func: Callable[..., Any]) -> bool:
    return func.__name__ == "__get__"


def _sort(values: Any, marked: list[Tensor], trainable: list[Tensor]) -> None:
    """Sort tensor arguments into those of the batch and unmarked ones that require a gradient."""
    for value in values:
        if isinstance(value, Tensor):
            if mark_of(value) is not None:
                marked.append(value)
            elif value.requires_grad:
                trainable.append(value)
        elif isinstance(value, (list, tuple)):
            _sort(value, marked, trainable)
        elif type(value) is slice:
            _sort((value.start, value.stop, value.step), marked, trainable)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call writes into."""
    found = tensors_in(kwargs["out"]) if kwargs.get("out") is not None else []
    return [*found, *tensors_in(args[0])] if args and _writes(func.__name__) else found


@cache
def _writes(name: str) -> bool:
    if name.startswith("__"):
        return name in ("__setitem__", "__set__") or (name.startswith("__i") and name not in _NOT_IN_PLACE)
    return name.endswith("_")


def _detached(values: Any, chosen: set[int]) -> Any:
    if isinstance(values, Tensor):
        return values.detach() if id(values) in chosen else values
    if isinstance(values, dict):
        return {key: _detached(value, chosen) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(_detached(value, chosen) for value in values)
    return values
