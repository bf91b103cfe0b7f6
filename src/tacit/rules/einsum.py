"""``torch.einsum`` and its relatives with parameters in any place."""

from __future__ import annotations

import string
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tacit.errors import MixingError
from tacit.rules.broadcast import per_sample_copies
from tacit.rules.contact import Contact
from tacit.rules.registry import methods, rule_for
from tacit.uses import Layout


@rule_for(torch.einsum)
def einsum(contact: Contact, equation: Any, *operands: Any) -> Tensor:
    if not isinstance(equation, str):
        contact.refuse("the sublist form of einsum: write it as an equation")
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)
    terms, out = spell_out(equation, tensors)
    letter, layout = _batch_letter(contact, terms, tensors)
    if letter not in out:
        raise MixingError(
            f"{contact.where()}: '{equation}' sums over the samples, so they have no gradient of their own. Keep the "
            "batch in the output, or move the sum to the loss."
        )
    simple = _as_linear(contact, terms, out, tensors, letter)
    return simple if simple is not None else _by_copies(contact, terms, out, tensors, letter, layout)


def spell_out(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """Return the terms and the output of an equation with letters for ``...`` and for an implicit output."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [value.dim() - len(term) + 3 if "..." in term else 0 for term, value in zip(terms, operands, strict=True)]
    dots = "".join(free[: max(widths, default=0)])
    if not arrow:
        letters = left.replace(".", "").replace(",", "")
        out = "..." * bool(dots) + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    terms = [term.replace("...", dots[len(dots) - width :]) for term, width in zip(terms, widths, strict=True)]
    return terms, out.replace("...", dots)


def _batch_letter(contact: Contact, terms: Sequence[str], operands: Sequence[Tensor]) -> tuple[str, Layout]:
    found: tuple[str, Layout] | None = None
    for term, value in zip(terms, operands, strict=True):
        layout = contact.layout(value)
        if layout is None:
            continue
        here = term[layout.dim], layout.at(0)
        if found is not None and here != found:
            contact.refuse(f"operands carry the batch in different ways: {found} and {here}")
        found = here
    if found is None:
        contact.refuse("no operand carries the batch")
    return found


def _as_linear(
    contact: Contact, terms: Sequence[str], out: str, operands: Sequence[Tensor], letter: str
) -> Tensor | None:
    """One batch operand and one parameter with its contracted letters in front or behind: a matrix product."""
    slots = [contact.slot(value) is not None for value in operands]
    if len(operands) != 2 or sum(slots) != 1:
        return None
    place = slots.index(True)
    (read, term), (x, weight) = (
        (terms[1 - place], terms[place]),
        (operands[1 - place], operands[place]),
    )
    summed = "".join(c for c in term if c in read and c not in out)
    new = "".join(c for c in term if c in out and c not in read)
    once = len(set(read)) == len(read) and len(set(term)) == len(term) == len(summed) + len(new)
    if not once or set(out) != (set(read) - set(summed)) | set(new) or len(set(out)) != len(out):
        return None
    if term not in (new + summed, summed + new) or letter in term:
        return None
    sizes = dict(zip(read, x.shape, strict=True)) | dict(zip(term, weight.shape, strict=True))
    if any(sizes[c] != size for c, size in zip(read, x.shape, strict=True)):
        return None  # a size of 1 that broadcasts
    call = contact.call
    kept = "".join(c for c in read if c not in summed)
    x = call(torch.permute, x, tuple(read.index(c) for c in kept + summed))
    x = call(torch.reshape, x, (*(sizes[c] for c in kept), prod(sizes[c] for c in summed)))
    rows, columns = (summed, new) if term == summed + new else (new, summed)
    matrix = call(torch.reshape, weight, (prod(sizes[c] for c in rows), prod(sizes[c] for c in columns)))
    y = call(torch.matmul, x, matrix) if rows == summed else call(torch.nn.functional.linear, x, matrix)
    y = call(torch.reshape, y, tuple(sizes[c] for c in kept + new))
    return call(torch.permute, y, tuple((kept + new).index(c) for c in out))  # type: ignore[no-any-return]


def _by_copies(
    contact: Contact, terms: Sequence[str], out: str, operands: Sequence[Tensor], letter: str, layout: Layout
) -> Tensor:
    """Every parameter with one copy per sample, and the batch's letter in its term."""
    new_terms, values = [], []
    for term, value in zip(terms, operands, strict=True):
        if contact.slot(value) is None:
            new_terms.append(term)
            values.append(value)
            continue
        if letter in term:
            contact.refuse(f"a parameter {tuple(value.shape)} has the dimension of the batch")
        copies = per_sample_copies(contact, value, layout.samples)
        if layout.owner is not None:
            copies = copies[layout.owners(copies.device)]
        elif layout.outer * layout.inner > 1:
            copies = copies.unsqueeze(1).expand(-1, layout.inner, *value.shape).flatten(0, 1)
            copies = copies.unsqueeze(0).expand(layout.outer, *copies.shape).flatten(0, 1)
        new_terms.append(letter + term)
        values.append(copies)
    y = torch.einsum(f"{','.join(new_terms)}->{out}", values)
    contact.mark(y, layout.at(out.index(letter)))
    return y


@rule_for(torch.tensordot)
def tensordot(contact: Contact, a: Tensor, b: Tensor, dims: Any = 2, out: Tensor | None = None) -> Tensor:
    if out is not None:
        contact.refuse("out=: take the returned tensor instead")
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = list(range(a.dim() - dims, a.dim())), list(range(dims))
    letters = iter(string.ascii_letters)
    first = [next(letters) for _ in range(a.dim())]
    second = [next(letters) for _ in range(b.dim())]
    for one, other in zip(*dims, strict=True):
        second[other] = first[one]
    summed = {first[one] for one in dims[0]}
    kept = "".join(c for c in (*first, *second) if c not in summed)
    return contact.call(torch.einsum, f"{''.join(first)},{''.join(second)}->{kept}", a, b)  # type: ignore[no-any-return]


@rule_for(*methods(["inner"], torch, Tensor))
def inner(contact: Contact, input: Tensor, other: Tensor) -> Tensor:
    if input.dim() == 0 or other.dim() == 0:
        return contact.call(torch.mul, input, other)  # type: ignore[no-any-return]
    return contact.call(torch.tensordot, input, other, dims=([-1], [-1]))  # type: ignore[no-any-return]


@rule_for(*methods(["outer", "ger"], torch, Tensor))
def outer(contact: Contact, input: Tensor, vec2: Tensor) -> Tensor:
    return contact.call(torch.mul, contact.call(torch.unsqueeze, input, 1), vec2)  # type: ignore[no-any-return]


@rule_for(*methods(["baddbmm", "addmv"], torch, Tensor))
def added_product(
    contact: Contact, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """``beta·input + alpha·(batch1 @ batch2)``."""
    call = contact.call
    product = call(torch.matmul, batch1, batch2)
    product = product if alpha == 1 else call(torch.mul, product, alpha)
    if beta == 0:
        return product  # type: ignore[no-any-return]
    return call(torch.add, product, input if beta == 1 else call(torch.mul, input, beta))  # type: ignore[no-any-return]
