"""Noise on a GPU: the keystream is ChaCha20's, and numbers come from it once each.

The kernel itself needs Triton, which interprets it on the CPU with TRITON_INTERPRET=1; without Triton that test is
skipped, and the rest runs on the keystream of `cryptography`. Bounds are 6.5 standard deviations, as in `test_noise`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from tacit.mechanisms import NoiseSource, noise
from tacit.mechanisms.device import PAIRS, READY, DeviceNormal, available
from tacit.mechanisms.secure import Job

CPU = torch.device("cpu")


def reference(key: torch.Tensor, first: int, blocks: int) -> torch.Tensor:
    """The same words from `cryptography`, whose own counter has 32 bits."""
    nonce = first.to_bytes(8, "little") + bytes(8)
    stream = Cipher(algorithms.ChaCha20(key.numpy().tobytes(), nonce), mode=None).encryptor().update(bytes(64 * blocks))
    return torch.frombuffer(bytearray(stream), dtype=torch.int32).view(blocks, 16).T.contiguous()


KERNEL = """
import torch
from tacit.mechanisms.chacha_kernel import chacha_words
from tests.mechanisms.test_device import reference
key = torch.randint(-(2**31), 2**31, (8,), dtype=torch.int32)
assert torch.equal(chacha_words(key, 0, 1000), reference(key, 0, 1000))
assert torch.equal(chacha_words(key, 77, 1), reference(key, 77, 1))
across = chacha_words(key, 2**32 - 2, 4)
for place in range(4):
    assert torch.equal(across[:, place : place + 1], reference(key, 2**32 - 2 + place, 1))
print("exact")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_is_chacha20():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "exact\n", done.stderr


def normals(source: DeviceNormal, count: int) -> torch.Tensor:
    out = torch.empty(count, dtype=torch.float64)
    source.each([Job(count, lambda numbers, part: out[part].copy_(numbers))])
    return out


@pytest.mark.parametrize("counts", [[2**21 + 3], [READY // 4 - 1] * 200])
def test_numbers_are_standard_normal(counts):
    """P(√n D > 4.2) ≤ 1e-15 (Massart 1990)."""
    source = DeviceNormal(CPU, reference)
    drawn = torch.cat([normals(source, count) for count in counts]).sort().values
    n = len(drawn)
    assert len(drawn.unique()) == n
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - torch.special.ndtr(drawn)
    assert max(float(above.max()), float((1 / n - above).max())) * n**0.5 < 4.2
    for t in (3.0, 4.0):
        expected = 2 * float(torch.special.ndtr(torch.tensor(-t, dtype=torch.float64))) * n
        assert abs(int((drawn.abs() > t).sum()) - expected) < (2 * 21 * expected) ** 0.5 + 21


def test_neighbours_in_every_distance_are_uncorrelated():
    count = 2**20
    drawn = normals(DeviceNormal(CPU, reference), count)
    for distance in (1, 2, count // 8, count // 4, count // 2):
        a, b = drawn[:-distance], drawn[distance:]
        for f in (lambda x: x, lambda x: x.square() - 1):
            products = f(a) * f(b)
            assert abs(float(products.mean())) < 6.5 * float(products.std()) / len(a) ** 0.5


def test_no_block_comes_twice():
    asked: list[range] = []

    def words(key: torch.Tensor, first: int, blocks: int) -> torch.Tensor:
        asked.append(range(first, first + blocks))
        return torch.zeros(16, blocks, dtype=torch.int32)

    source = DeviceNormal(CPU, words)
    for count in (1, READY, 5, 2 * PAIRS + 9, READY + 1):
        assert len(normals(source, count)) == count
    ends = [(part.start, part.stop) for part in asked]
    assert [start for start, _ in ends[1:]] == [stop for _, stop in ends[:-1]]
    assert ends[0][0] == 0


def test_sources_have_keys_of_their_own_and_a_forked_process_a_new_one(monkeypatch):
    source, other = DeviceNormal(CPU, reference), DeviceNormal(CPU, reference)
    first = normals(source, 8)
    assert not torch.isin(normals(other, 8), first).any()
    monkeypatch.setattr(os, "getpid", lambda: -7)
    again = normals(source, 8)
    assert source.next_block == READY // 8  # it began anew, with another key
    assert not torch.isin(again, first).any()


def test_numbers_are_handed_out_once_also_if_a_step_fails():
    source, seen = DeviceNormal(CPU, reference), []

    def fails(numbers, part):
        seen.append(numbers.clone())
        raise KeyboardInterrupt

    for count in (8, 2 * READY):
        with pytest.raises(KeyboardInterrupt):
            source.each([Job(count, fails)])
        assert not torch.isin(normals(source, count), seen.pop()).any()


def test_a_forked_process_that_failed_to_take_a_new_key_has_not_the_old_one(monkeypatch):
    source = DeviceNormal(CPU, reference)
    first = normals(source, 8)
    ready = normals(source, 8)
    monkeypatch.setattr(os, "getpid", lambda: -7)
    with monkeypatch.context() as patch:
        patch.setattr("secrets.token_bytes", lambda _: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            normals(source, 8)
    again = normals(source, 8)
    assert source.next_block == READY // 8
    assert not torch.isin(again, torch.cat([first, ready])).any()


def test_where_it_is_used_and_what_is_said(monkeypatch):
    meta = torch.device("meta")
    assert not available(CPU)
    assert not available(meta)
    monkeypatch.setattr(noise, "available", lambda device: device == meta)
    monkeypatch.setattr(noise, "DeviceNormal", lambda device: DeviceNormal(CPU, reference))
    source, seen = NoiseSource(), []
    source.each([Job(5, lambda numbers, part: seen.append(numbers))], meta)
    assert len(seen[0]) == 5
    assert source.secure
    assert source.description == "ChaCha20, keyed from the operating system's entropy"
    given = NoiseSource(torch.Generator().manual_seed(0))
    given.each([Job(5, lambda numbers, part: seen.append(numbers))], CPU)
    assert given.reproducible
