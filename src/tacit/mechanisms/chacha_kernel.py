"""ChaCha20's block function (Bernstein 2008; RFC 8439, section 2.3) as a Triton kernel: importing it needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 256
"""Blocks of one program."""


@triton.jit
def _turned(x, bits: tl.constexpr):
    return (x << bits) | (x >> (32 - bits))


@triton.jit
def _quarter(a, b, c, d):
    a += b
    d = _turned(d ^ a, 16)
    c += d
    b = _turned(b ^ c, 12)
    a += b
    d = _turned(d ^ a, 8)
    c += d
    b = _turned(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _rounds(key, first, out, count, BLOCKS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    counter = place + first
    zero = tl.zeros((BLOCKS,), dtype=tl.uint32)
    s0, s1, s2, s3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    s4, s5 = zero + tl.load(key).to(tl.uint32, bitcast=True), zero + tl.load(key + 1).to(tl.uint32, bitcast=True)
    s6, s7 = zero + tl.load(key + 2).to(tl.uint32, bitcast=True), zero + tl.load(key + 3).to(tl.uint32, bitcast=True)
    s8, s9 = zero + tl.load(key + 4).to(tl.uint32, bitcast=True), zero + tl.load(key + 5).to(tl.uint32, bitcast=True)
    s10, s11 = zero + tl.load(key + 6).to(tl.uint32, bitcast=True), zero + tl.load(key + 7).to(tl.uint32, bitcast=True)
    # A counter of 64 bits, as in Bernstein's own; the other 64 bits are 0: each key is used with one nonce only.
    s12, s13 = (counter & 0xFFFFFFFF).to(tl.uint32), ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    s14, s15 = zero, zero
    x0, x1, x2, x3, x4, x5, x6, x7 = s0, s1, s2, s3, s4, s5, s6, s7
    x8, x9, x10, x11, x12, x13, x14, x15 = s8, s9, s10, s11, s12, s13, s14, s15
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    there = place < count
    at = out + place
    tl.store(at, (x0 + s0).to(tl.int32, bitcast=True), there)
    tl.store(at + count, (x1 + s1).to(tl.int32, bitcast=True), there)
    tl.store(at + 2 * count, (x2 + s2).to(tl.int32, bitcast=True), there)
    tl.store(at + 3 * count, (x3 + s3).to(tl.int32, bitcast=True), there)
    tl.store(at + 4 * count, (x4 + s4).to(tl.int32, bitcast=True), there)
    tl.store(at + 5 * count, (x5 + s5).to(tl.int32, bitcast=True), there)
    tl.store(at + 6 * count, (x6 + s6).to(tl.int32, bitcast=True), there)
    tl.store(at + 7 * count, (x7 + s7).to(tl.int32, bitcast=True), there)
    tl.store(at + 8 * count, (x8 + s8).to(tl.int32, bitcast=True), there)
    tl.store(at + 9 * count, (x9 + s9).to(tl.int32, bitcast=True), there)
    tl.store(at + 10 * count, (x10 + s10).to(tl.int32, bitcast=True), there)
    tl.store(at + 11 * count, (x11 + s11).to(tl.int32, bitcast=True), there)
    tl.store(at + 12 * count, (x12 + s12).to(tl.int32, bitcast=True), there)
    tl.store(at + 13 * count, (x13 + s13).to(tl.int32, bitcast=True), there)
    tl.store(at + 14 * count, (x14 + s14).to(tl.int32, bitcast=True), there)
    tl.store(at + 15 * count, (x15 + s15).to(tl.int32, bitcast=True), there)


def chacha_words(key: Tensor, first: int, blocks: int) -> Tensor:
    """The keystream of some blocks.

    Args:
        key: ``(8,)``, int32, on the device.
        first: the counter of the first block.
        blocks: how many.

    Returns:
        ``(16, blocks)``, int32: word i of each block in row i.
    """
    out = torch.empty(16, blocks, dtype=torch.int32, device=key.device)
    _rounds[(triton.cdiv(blocks, BLOCKS),)](key, first, out, blocks, BLOCKS=BLOCKS)
    return out
