"""Noise by one call from many threads, against that of words made one after the other."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tacit.errors import PrivacyError
from tacit.mechanisms import native, team
from tacit.mechanisms.fused import FROM, Rounding, compiled
from tacit.mechanisms.keystream import Keystream
from tacit.mechanisms.moving import Move
from tacit.mechanisms.native import Native, Piece, can_make
from tacit.mechanisms.secure import KEYED_PAIRS, Job, SecureNormal

pytest.importorskip("numba")
KEY = bytes(range(16))
needs_kernel = pytest.mark.skipif(not native.goes(False), reason="no instructions for AES")


@pytest.fixture
def anew():
    native.goes.cache_clear()
    yield
    native.goes.cache_clear()


def sums(count, seed):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 1e5


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("team_there", [True, False])
def test_each_piece_is_made_from_the_words_of_its_number(threads, team_there, monkeypatch):
    if not team_there:
        monkeypatch.setattr(team, "_parallel", lambda: None)
    counts, deviation, longest = [1, 2, 63, 64, 65, 1000, 4097], 1e4, 4097
    found, wanted = ([Rounding(sums(count + 3, count), 0.5, 0.25) for count in counts] for _ in range(2))
    pieces = [Piece(one, 2, count, deviation, 2**90 + count) for one, count in zip(found, counts, strict=True)]
    Native(KEY, longest).make(pieces, threads)
    for one, other, count in zip(found, wanted, counts, strict=True):
        words = Keystream(KEY).block(2**90 + count, (count + 1) // 2)
        other.fused(compiled(), words, slice(2, 2 + count), deviation)
        assert (one.values - other.values).abs().max() <= 0.25  # one step of the grid, where a sum lies between two
        assert (one.values != other.values).double().mean() < 1e-2
        assert torch.equal(one.values[:2], sums(count + 3, count)[:2])
        assert torch.equal(one.values[-1:], sums(count + 3, count)[-1:])


@needs_kernel
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rate", [0.1, 0.0, 3e-7])
def test_weights_move_by_what_is_released_to_the_last_bit(threads, rate):
    counts, longest = [1, 2, 63, 4097, 8000], 2000
    released, plain, weights = ([sums(count, count + seed) for count in counts] for seed in (0, 0, 9))
    expected = [each.clone() for each in weights]
    moved = {0, 1, 3, 4}
    for outs, moving in ((released, True), (plain, False)):
        pieces = []
        for place, out in enumerate(outs):
            move = Move(weights[place], rate) if moving and place in moved else None
            rounding = Rounding(out, 1.0, 1e-3, move)
            starts = range(0, len(out), longest)
            pieces += [Piece(rounding, at, min(longest, len(out) - at), 1e4, 10**6 * place + at) for at in starts]
        Native(KEY, longest).make(pieces, threads)
    for place, (out, same, found, weight) in enumerate(zip(released, plain, weights, expected, strict=True)):
        assert (out - same).abs().max() <= 1e-3
        assert torch.equal(found, weight.add(out, alpha=-rate) if place in moved else weight)


@needs_kernel
def test_the_number_of_threads_changes_nothing():
    outs = [sums(10 * 2 * KEYED_PAIRS + 77, 0) for _ in range(3)]
    for threads, out in zip((1, 2, 5), outs, strict=True):
        rounding, block = Rounding(out, 1.0, 1.0), 2 * KEYED_PAIRS
        starts = range(0, len(out), block)
        pieces = [Piece(rounding, at, min(block, len(out) - at), 100.0, at) for at in starts]
        Native(KEY, block).make(pieces, threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@needs_kernel
def test_threads_of_ones_own_may_use_the_team_at_once():
    """Each has its own key here; in a source they take turns."""

    def one(seed):
        out = sums(200_001, seed)
        rounding = Rounding(out, 1.0, 1.0)
        pieces = [Piece(rounding, at, min(20_000, len(out) - at), 100.0, at) for at in range(0, len(out), 20_000)]
        Native(bytes([seed] * 16), 20_000).make(pieces, 2)
        return out

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(8)))
    assert all(torch.equal(found, one(seed)) for seed, found in enumerate(together))


@needs_kernel
def test_a_source_asks_for_it_for_float32_only():
    for dtype, wanted in ((torch.float32, True), (torch.float64, False), (torch.bfloat16, False)):
        assert can_make(Rounding(torch.zeros(2, dtype=dtype), 1.0, 1.0), False) is wanted


@needs_kernel
def test_a_source_with_a_key_makes_the_same_with_and_without_it(monkeypatch):
    """Which processors have the instructions differs, and processes with one key must agree but for rounding."""
    outs = [sums(FROM + 5, 1) for _ in range(2)]
    SecureNormal(KEY).each([Job(len(outs[0]), Rounding(outs[0], 1.0, 1.0), 50.0)])
    monkeypatch.setattr("tacit.mechanisms.secure.can_make", lambda *_: False)
    SecureNormal(KEY).each([Job(len(outs[1]), Rounding(outs[1], 1.0, 1.0), 50.0)])
    assert (outs[0] - outs[1]).abs().max() <= 1
    assert (outs[0] != outs[1]).double().mean() < 1e-2


@pytest.mark.usefixtures("anew")
def test_words_that_are_not_the_ciphers_are_not_used(monkeypatch):
    monkeypatch.setattr("tacit.mechanisms.aes_kernel.lanes", lambda: 1)
    monkeypatch.setattr(native, "_fault", lambda _: "its words are not those of AES")
    with pytest.warns(UserWarning, match="noise takes longer.*not those of AES"):
        assert not native.goes(False)


@pytest.mark.usefixtures("anew")
def test_a_kernel_that_fails_is_not_used(monkeypatch):
    def fails():
        raise RuntimeError("unknown instruction")

    monkeypatch.setattr("tacit.mechanisms.aes_kernel.lanes", fails)
    for moving in (False, True):
        with pytest.warns(UserWarning, match="RuntimeError: unknown instruction"):
            assert not native.goes(moving)


@needs_kernel
@pytest.mark.usefixtures("anew")
def test_a_kernel_that_rounds_otherwise_than_torch_moves_no_weights(monkeypatch):
    monkeypatch.setattr(Native, "make", lambda self, pieces, threads, real=Native.make: _and_nudge(self, pieces, real))
    with pytest.warns(UserWarning, match="moves weights otherwise than torch"):
        assert not native.goes(True)
    assert native.goes(False)


def _and_nudge(source, pieces, real):
    real(source, pieces, 1)
    for piece in pieces:
        if piece.rounding.move is not None:
            piece.rounding.move.weights[17].mul_(1 + 2**-22)


@pytest.mark.usefixtures("anew")
def test_without_the_instructions_nothing_is_said(monkeypatch, recwarn):
    monkeypatch.setattr("tacit.mechanisms.aes_kernel.lanes", lambda: 0)
    assert not native.goes(False)
    assert not recwarn.list


@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="the library is named as on Linux")
def test_the_team_is_torchs_own():
    """Two OpenMP libraries in one process would each have threads that wait for work, on the same processors."""
    assert (team._parallel() is not None) == any((team.Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))


@needs_kernel
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_whatever_the_default_type_is_it_is_tried_on_float32(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert native.goes(False)
        assert native.goes(True)
    finally:
        torch.set_default_dtype(before)


@needs_kernel
@pytest.mark.usefixtures("anew")
def test_whatever_the_default_device_is_memory_is_the_cpus():
    out = torch.zeros(200)
    with torch.device("meta"):
        assert native.goes(True)
        Native(KEY, 100).make([Piece(Rounding(out, 1.0, 1.0), at, 100, 1e4, at) for at in (0, 100)], 2)
    assert out.all()


@needs_kernel
def test_only_numbers_that_it_can_write_are_written():
    narrow, there = torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8)
    source = Native(KEY, 8)
    with pytest.raises(TypeError, match="float32 side by side.*bfloat16"):
        source.make([Piece(Rounding(narrow, 1.0, 1.0), 0, 8, 1.0, 0)], 1)
    with pytest.raises(TypeError, match="float32 side by side"):
        source.make([Piece(Rounding(there, 1.0, 1.0, Move(there.double(), 0.1)), 0, 8, 1.0, 0)], 1)
    with pytest.raises(IndexError, match="8 numbers from 1 on"):
        source.make([Piece(Rounding(there, 1.0, 1.0), 1, 8, 1.0, 0)], 1)
    assert not there.any()


@needs_kernel
def test_noise_that_was_not_made_is_an_error_and_its_stream_is_given_up(monkeypatch):
    """Sums without noise must not pass for a release."""
    assert native.goes(False)
    monkeypatch.setattr(team, "run", lambda *_: None)
    source, out = SecureNormal(), torch.ones(FROM)
    source.next_block = 5
    with pytest.raises(PrivacyError, match="noise was made for 0 of 3 parts"):
        source.each([Job(FROM, Rounding(out, 1.0, 1.0), 50.0)])
    stream = source._streams[0]
    monkeypatch.undo()
    source.each([Job(FROM, Rounding(out, 1.0, 1.0), 50.0)])
    assert source._streams[0] is stream
    assert source.next_block == 11
    assert (out != 1).double().mean() > 0.9
