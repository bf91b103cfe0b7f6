"""One recurrent layer in one direction: a fused forward, and a backward that keeps the error of every time step.

Everything is time-major: x (T, B, d), states (B, H), outputs (T, B, P). The forward is torch's own fused kernel. The
backward computes all gates at once by two products, since the outputs are the states, then walks back through time with
a few calls a step, and leaves δ (T, B, gates · H), the gradient at each gate's input. With it a weight's gradient is a
sum over time of outer products, like that of a linear layer.

Sequences of different lengths are padded at their end; nothing flows back from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one layer in one direction; ``w_hr`` (P, H) projects an LSTM's output."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    def present(self) -> list[Tensor]:
        values = (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr)
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class Sequences:
    """What a forward read and wrote: inputs, outputs, initial states, and lengths (None: all of length T)."""

    x: Tensor
    y: Tensor
    h0: Tensor
    c0: Tensor | None
    lengths: Tensor | None

    @cached_property
    def inputs(self) -> Tensor:
        """x, batch-major in memory, as all that is read sample by sample afterwards."""
        return self.x.transpose(0, 1).contiguous().transpose(0, 1)

    @cached_property
    def previous(self) -> Tensor:
        """The state before each step: (T, B, P), batch-major in memory."""
        states = self.y.new_empty((self.y.shape[1], self.y.shape[0], self.y.shape[2])).transpose(0, 1)
        states[0] = self.h0
        states[1:] = self.y[:-1]
        return states

    def at_the_end(self, values: Tensor, last: Tensor) -> Tensor:
        """``values`` (T, B, P) with ``last`` (B, P) added where each sequence ends."""
        values = values.clone()
        if self.lengths is None:
            values[-1] += last
        else:
            values[self.lengths - 1, torch.arange(len(last), device=last.device)] += last
        return values


@dataclass(frozen=True, slots=True)
class Errors:
    """Gradients at the inputs of the gates, as the input weights and the recurrent weights see them, and of the states.

    ``projected`` is the pair of tensors whose products are the gradient of ``w_hr``.
    """

    of_input: Tensor
    of_state: Tensor
    h0: Tensor
    c0: Tensor | None = None
    projected: tuple[Tensor, Tensor] | None = None


class Cell(ABC):
    """One kind of recurrent layer."""

    fused: Any
    gates: int
    has_memory = False

    def forward(
        self, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights, lengths: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return outputs (T, B, P) and the last states (B, P), for an LSTM also the last memory (B, H)."""
        h0, c0 = h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0)
        state = h0 if c0 is None else (h0, c0)
        settings = (weights.present(), weights.b_ih is not None, 1, 0.0, False, False)
        if lengths is None:
            out = self.fused(x, state, *settings, False)
        else:
            data, sizes = torch._pack_padded_sequence(x, lengths.cpu(), False)
            out = self.fused(data, sizes, state, *settings)
            out = (torch._pad_packed_sequence(out[0], sizes, False, 0.0, x.shape[0])[0], *out[1:])
        return out[0], *(last.squeeze(0) for last in out[1:])

    @abstractmethod
    def backward(self, seen: Sequences, weights: Weights, gy: Tensor, last: tuple[Tensor, ...]) -> Errors:
        """Walk back through time.

        Args:
            seen: what the forward read and wrote.
            weights: the parameters.
            gy: gradients of the outputs.
            last: gradients of the last states.
        """

    def inputs_of_gates(self, seen: Sequences, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the parts that come from x and from the state: (T, B, gates, H) each."""
        pairs = ((seen.inputs, weights.w_ih, weights.b_ih), (seen.previous, weights.w_hh, weights.b_hh))
        parts = [F.linear(read.transpose(0, 1), weight, bias) for read, weight, bias in pairs]
        from_input, from_state = (part.unflatten(-1, (self.gates, -1)).transpose(0, 1) for part in parts)
        return from_input, from_state


class PlainCell(Cell):
    """``h' = φ(W_ih x + b_ih + W_hh h + b_hh)``."""

    gates = 1

    def __init__(self, *, relu: bool) -> None:
        self.fused = torch.rnn_relu if relu else torch.rnn_tanh
        self._relu = relu

    def backward(self, seen: Sequences, weights: Weights, gy: Tensor, last: tuple[Tensor, ...]) -> Errors:
        gy = seen.at_the_end(gy, last[0])
        slopes = (seen.y > 0).to(gy.dtype) if self._relu else 1 - seen.y.square()
        errors, dh = empty_errors(gy, 1, gy.shape[2]).squeeze(2), gy[-1]
        for t in range(len(gy) - 1, -1, -1):
            torch.mul(dh, slopes[t], out=errors[t])
            dh = torch.addmm(gy[t - 1], errors[t], weights.w_hh) if t else errors[t] @ weights.w_hh
        return Errors(errors, errors, dh)


class GruCell(Cell):
    """Gates r, z, n: ``n = tanh(x_n + r · h_n)``, ``h' = (1 − z) n + z h`` (Cho et al. 2014, as torch has it)."""

    fused = torch.gru
    gates = 3

    def backward(self, seen: Sequences, weights: Weights, gy: Tensor, last: tuple[Tensor, ...]) -> Errors:
        from_input, from_state = self.inputs_of_gates(seen, weights)
        state_n = from_state[:, :, 2]
        r, z = (from_input[:, :, :2] + from_state[:, :, :2]).sigmoid().unbind(2)
        n = torch.addcmul(from_input[:, :, 2], r, state_n).tanh()
        slope_n = (1 - z) * (1 - n.square())
        slope_z = (seen.previous - n) * z * (1 - z)
        slopes = torch.stack([slope_n * state_n * r * (1 - r), slope_z, slope_n * r], 2)
        gy = seen.at_the_end(gy, last[0])
        errors, whole = empty_errors(gy, 3, n.shape[2]), torch.empty_like(gy)
        dh = gy[-1]
        for t in range(len(gy) - 1, -1, -1):
            whole[t] = dh
            torch.mul(dh.unsqueeze(1), slopes[t], out=errors[t])
            kept = torch.addcmul(gy[t - 1], dh, z[t]) if t else dh * z[t]
            dh = torch.addmm(kept, errors[t].flatten(1), weights.w_hh)
        of_input = errors.clone()
        torch.mul(whole, slope_n, out=of_input[:, :, 2])
        return Errors(of_input.flatten(2), errors.flatten(2), dh)


class LstmCell(Cell):
    """Gates i, f, g, o: ``c' = f c + i g``, ``h' = o tanh(c')`` (Hochreiter and Schmidhuber 1997, as torch has it)."""

    fused = torch.lstm
    gates = 4
    has_memory = True

    def backward(self, seen: Sequences, weights: Weights, gy: Tensor, last: tuple[Tensor, ...]) -> Errors:
        gates = _Gates(seen, weights)
        gy, given = seen.at_the_end(gy, last[0]), last[1]
        errors = gates.values  # each step's are written where its gates were, which nobody reads again
        whole = torch.empty_like(gy) if weights.w_hr is not None else gy
        dh = gy[-1]
        dc = given.clone() if seen.lengths is None else torch.zeros_like(given)
        # taken apart beforehand: indexing costs as much as the arithmetic
        steps = list(
            zip(
                gy.unbind(0),
                gates.slope_c.unbind(0),
                gates.slope_o.unbind(0),
                gates.f.unbind(0),
                *(part.unbind(0) for part in (*gates.slopes, *errors.unbind(2), errors.flatten(2))),
                strict=True,
            )
        )
        for t in range(len(gy) - 1, -1, -1):
            _, slope_c, slope_o, f, slope_i, slope_f, slope_g, e_i, e_f, e_g, e_o, all_errors = steps[t]
            if seen.lengths is not None:
                dc += given * (seen.lengths == t + 1).unsqueeze(1)
            if weights.w_hr is not None:
                whole[t] = dh
                dh = dh @ weights.w_hr
            dc.addcmul_(dh, slope_c)
            kept = dc * f
            torch.mul(dc, slope_i, out=e_i)
            torch.mul(dc, slope_f, out=e_f)
            torch.mul(dc, slope_g, out=e_g)
            torch.mul(dh, slope_o, out=e_o)
            dc = kept
            dh = torch.addmm(steps[t - 1][0], all_errors, weights.w_hh) if t else all_errors @ weights.w_hh
        delta = errors.flatten(2)
        projected = None if weights.w_hr is None else (gates.out, whole)
        return Errors(delta, delta, dh, dc, projected)


class _Gates:
    """What an LSTM's gates were, and what a gradient at its output or memory is multiplied by on its way to them.

    With σ' = σ(1 − σ) and tanh' = 1 − tanh², each in one pass over memory, and in place: fresh memory costs more than
    the arithmetic.
    """

    def __init__(self, seen: Sequences, weights: Weights) -> None:
        bias = None if weights.b_ih is None or weights.b_hh is None else weights.b_ih + weights.b_hh
        sums = F.linear(seen.inputs.transpose(0, 1), weights.w_ih, bias)
        sums.flatten(0, 1).addmm_(seen.previous.transpose(0, 1).flatten(0, 1), weights.w_hh.t())
        self.values = sums.unflatten(-1, (4, -1)).transpose(0, 1)  # (T, B, 4, H)
        g = _tanh(self.values[:, :, 2])
        i, self.f, _, o = self.values.sigmoid_().unbind(2)
        added = i * g
        assert seen.c0 is not None
        c = _memories(added, self.f, seen.c0)
        kept, tanh_c = self.f * c[:-1], _tanh(c[1:])
        self.out = seen.y if weights.w_hr is None else o * tanh_c
        self.slope_o = torch.addcmul(self.out, self.out, o, value=-1)
        self.slope_c = torch.addcmul(o, self.out, tanh_c, value=-1, out=tanh_c)
        slope_g = torch.addcmul(i, added, g, value=-1, out=g)
        self.slopes = (added.addcmul_(added, i, value=-1), kept.addcmul_(kept, self.f, value=-1), slope_g)


def _tanh(x: Tensor) -> Tensor:
    """``2σ(2x) − 1``: several times faster than torch's tanh on a CPU, and as close in absolute terms."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)


def empty_errors(gy: Tensor, gates: int, width: int) -> Tensor:
    """An empty (T, B, gates, H), batch-major in memory, since each sample's steps are read together afterwards."""
    return gy.new_empty((gy.shape[1], gy.shape[0], gates, width)).transpose(0, 1)


def _memories(added: Tensor, kept: Tensor, c0: Tensor) -> Tensor:
    """``c_t = kept_t c_{t−1} + added_t``: (T + 1, B, H), from c0 on."""
    c = added.new_empty((len(added) + 1, *c0.shape))
    c[0] = c0
    steps = c.unbind(0)
    for new, part, old, out in zip(added.unbind(0), kept.unbind(0), steps[:-1], steps[1:], strict=True):
        torch.addcmul(new, part, old, out=out)
    return c
