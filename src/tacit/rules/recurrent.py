"""LSTM, GRU and plain recurrent layers, of any number of layers and directions, padded or packed; and their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.rules.broadcast import per_sample
from tacit.rules.contact import SENTINEL, Contact, Slot, in_own_types, refuse_double_backward
from tacit.rules.linear import least_of_outer, record_outer
from tacit.rules.recurrent_cells import Cell, GruCell, LstmCell, PlainCell, Sequences, Weights
from tacit.rules.registry import rule_for
from tacit.uses import Dense, Gram, Layout

_CELLS: dict[Callable[..., Any], Cell] = {
    torch.lstm: LstmCell(),
    torch.gru: GruCell(),
    torch.rnn_tanh: PlainCell(relu=False),
    torch.rnn_relu: PlainCell(relu=True),
}


class RecurrentFunction(torch.autograd.Function):
    """One layer in one direction; see ``recurrent_cells`` for shapes."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        cell: Cell,
        x: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        lengths: Tensor | None,
        layout: Layout,
        slots: Sequence[Slot | None],
        names: Sequence[str],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        out = cell.forward(x, h0, c0, Weights(**dict(zip(names, weights, strict=True))), lengths)
        for slot, weight in zip(slots, weights, strict=True):
            if slot is not None and weight.dim() == 2:
                slot.expect(partial(_least, layout, x, weight))
        ctx.save_for_backward(SENTINEL, x, h0, c0, lengths, out[0], *weights)
        ctx.settings = cell, layout, slots, names
        return out

    @staticmethod
    @in_own_types
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        _, x, h0, c0, lengths, y, *values = ctx.saved_tensors
        cell, layout, slots, names = ctx.settings
        weights = Weights(**dict(zip(names, values, strict=True)))
        seen = Sequences(x, y, h0, c0, lengths)
        errors = cell.backward(seen, weights, gradients[0], gradients[1:])
        of_input = layout.rows_of(errors.of_input)
        of_state = of_input if errors.of_state is errors.of_input else layout.rows_of(errors.of_state)
        by_name = dict(zip(names, slots, strict=True))
        gram = Gram(of_input) if of_state is of_input else None
        for name, read, error in (
            ("w_ih", lambda: layout.rows_of(seen.inputs), of_input),
            ("w_hh", lambda: layout.rows_of(seen.previous), of_state),
            ("w_hr", lambda: layout.rows_of(errors.projected[0]), None),
        ):
            slot = by_name.get(name)
            if slot is not None:
                error = layout.rows_of(errors.projected[1]) if error is None else error
                shared = gram if error is of_input else None
                shape = getattr(weights, name).shape
                record_outer(slot, read(), error, shape, gram=shared, sharing=1 if shared is None else 2)
        total = of_input.sum(1)
        for name, error in (("b_ih", total), ("b_hh", total if gram is not None else of_state.sum(1))):
            slot = by_name.get(name)
            if slot is not None:
                slot.record(Dense(error))
        gx = None
        if ctx.needs_input_grad[2]:  # errors are batch-major in memory: so it is one product
            gx = (errors.of_input.transpose(0, 1) @ weights.w_ih).transpose(0, 1)
        return None, None, gx, errors.h0, errors.c0, *[None] * (4 + len(values))


def _least(layout: Layout, x: Tensor, weight: Tensor) -> int:
    return least_of_outer(layout.samples, x.shape[0] * x.shape[1], weight)


@dataclass(frozen=True, slots=True)
class Stack:
    """The settings of one call.

    Attributes:
        cell: the kind.
        weights: the flat list of parameters: layer by layer, direction by direction.
        biased: whether there are biases.
        layers: number of layers.
        directions: 1 or 2.
        dropout: between layers.
        layout: of a (T, B, d) tensor.
        lengths: of the sequences, in the order of dimension 1 of that; None if they are all of length T.
    """

    cell: Cell
    weights: Sequence[Tensor]
    biased: bool
    layers: int
    directions: int
    dropout: float
    layout: Layout
    lengths: Tensor | None

    def names(self) -> list[str]:
        """What the parameters of one layer in one direction are, in their order."""
        names = ["w_ih", "w_hh", *(["b_ih", "b_hh"] if self.biased else [])]
        projected = len(self.weights) // (self.layers * self.directions) > len(names)
        return [*names, "w_hr"] if projected else names

    def run(self, contact: Contact, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run all layers: x (T, B, d) → outputs (T, B, directions · P), and the last states as given."""
        names = self.names()
        lasts: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.layers):
            outs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                weights = self.weights[place * len(names) : (place + 1) * len(names)]
                seen = self._reversed(x) if direction else x
                initial = [state[place] for state in states]
                c0 = initial[1] if self.cell.has_memory else None
                slots = [contact.slot(weight) for weight in weights]
                plain = [weight.detach() for weight in weights]
                settings = (self.lengths, self.layout, slots, names)
                out = RecurrentFunction.apply(contact.carrier, self.cell, seen, initial[0], c0, *settings, *plain)
                outs.append(self._reversed(out[0]) if direction else out[0])
                for last, value in zip(lasts, out[1:], strict=True):
                    last.append(value)
            x = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
            if self.dropout > 0 and layer < self.layers - 1:
                x = F.dropout(x, self.dropout)
        return x, [torch.stack(last) for last in lasts]

    def _reversed(self, x: Tensor) -> Tensor:
        """Each sequence back to front, by its own length."""
        if self.lengths is None:
            return x.flip(0)
        times = torch.arange(len(x), device=x.device).unsqueeze(1)
        places = torch.where(times < self.lengths, self.lengths - 1 - times, times)
        return x.gather(0, places.unsqueeze(-1).expand_as(x))


@rule_for(*_CELLS, always=True)
def recurrent(contact: Contact, *args: Any) -> Any:
    packed = (
        not isinstance(args[2], (list, tuple)) or isinstance(args[2][0], (list, tuple)) or isinstance(args[3], list)
    )
    return _packed(contact, *args) if packed else _padded(contact, *args)


def _padded(
    contact: Contact,
    input: Tensor,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> Any:
    if input.dim() != 3:
        contact.refuse(f"an input {tuple(input.shape)} without a batch dimension")
    layout = contact.batch_layout(input, features=1)
    if layout.dim != (0 if batch_first else 1) and layout.samples > 1:
        contact.refuse(
            f"the batch is in dimension {layout.dim} of the input, which batch_first={batch_first} reads as time"
        )
    x = input.transpose(0, 1) if batch_first else input
    layout = Layout(1, 1, inner=x.shape[1]) if layout.samples == 1 else layout.at(1)
    cell = _CELLS[contact.function]
    stack = Stack(
        cell,
        params,
        has_biases,
        num_layers,
        1 + bool(bidirectional),
        dropout if train else 0.0,
        layout,
        None,
    )
    y, lasts = _run(contact, stack, x, hx)
    y = y.transpose(0, 1) if batch_first else y
    contact.mark(y, layout.at(0) if batch_first else layout)
    return y, *lasts


def _packed(
    contact: Contact,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> Any:
    """``data`` holds, time step by time step, one row of each sequence that is not over, longest first."""
    known = contact.batch_layout(data, features=1)
    sizes = batch_sizes.tolist()
    owners = known.owners(data.device)
    order = owners[: sizes[0]]
    expected = torch.cat([order[:size] for size in sizes])
    if len(expected) != len(owners) or not torch.equal(expected, owners):
        contact.refuse("rows of the packed sequence have changed places since they were packed")
    lengths = (batch_sizes.unsqueeze(1) > torch.arange(sizes[0])).sum(0).to(data.device)
    x, _ = torch._pad_packed_sequence(data, batch_sizes, False, 0.0, len(sizes))
    stack = Stack(
        _CELLS[contact.function],
        params,
        has_biases,
        num_layers,
        1 + bool(bidirectional),
        dropout if train else 0.0,
        Layout.owned(known.samples, 1, order),
        lengths,
    )
    y, lasts = _run(contact, stack, x, hx)
    out, _ = torch._pack_padded_sequence(y, lengths.cpu(), False)
    contact.mark(out, known)
    return out, *lasts


def _run(contact: Contact, stack: Stack, x: Tensor, hx: Any) -> tuple[Tensor, list[Tensor]]:
    states = [_state(contact, value, stack.layout) for value in (hx if isinstance(hx, (list, tuple)) else (hx,))]
    dtype = stack.weights[0].dtype
    with torch.autocast(x.device.type, enabled=False):
        y, lasts = stack.run(contact, x.to(dtype), [state.to(dtype) for state in states])
    for last in lasts:
        contact.mark(last, stack.layout)
    return y, lasts


def _state(contact: Contact, value: Tensor, layout: Layout) -> Tensor:
    """An initial state (layers · directions, B, H): constant, of the batch, or a parameter expanded over it."""
    if contact.slot(value) is not None:
        return per_sample(contact, value, layout, 3).expand(-1, layout.rows, -1)
    known = contact.layout(value)
    if known is not None and layout.samples > 1 and known != layout:
        contact.refuse("input and initial state carry the batch in different ways")
    return value


@rule_for(torch.lstm_cell)
def lstm_cell(
    contact: Contact,
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    call = contact.call
    h, c = hx
    gates = call(torch.add, call(F.linear, input, w_ih, b_ih), call(F.linear, h, w_hh, b_hh))
    i, f, g, o = call(torch.chunk, gates, 4, -1)
    kept = call(torch.mul, call(torch.sigmoid, f), c)
    c = call(torch.add, kept, call(torch.mul, call(torch.sigmoid, i), call(torch.tanh, g)))
    return call(torch.mul, call(torch.sigmoid, o), call(torch.tanh, c)), c


@rule_for(torch.gru_cell)
def gru_cell(
    contact: Contact,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    call = contact.call
    x_r, x_z, x_n = call(torch.chunk, call(F.linear, input, w_ih, b_ih), 3, -1)
    h_r, h_z, h_n = call(torch.chunk, call(F.linear, hx, w_hh, b_hh), 3, -1)
    r = call(torch.sigmoid, call(torch.add, x_r, h_r))
    z = call(torch.sigmoid, call(torch.add, x_z, h_z))
    n = call(torch.tanh, call(torch.add, x_n, call(torch.mul, r, h_n)))
    return call(torch.add, n, call(torch.mul, z, call(torch.sub, hx, n)))  # type: ignore[no-any-return]


@rule_for(torch.rnn_tanh_cell, torch.rnn_relu_cell)
def rnn_cell(
    contact: Contact,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    call = contact.call
    total = call(torch.add, call(F.linear, input, w_ih, b_ih), call(F.linear, hx, w_hh, b_hh))
    activation = torch.tanh if contact.function is torch.rnn_tanh_cell else torch.relu
    return call(activation, total)  # type: ignore[no-any-return]
