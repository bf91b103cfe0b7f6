"""AES by the processor's instructions, against FIPS 197's example and `cryptography`."""

import numpy as np
import pytest

from tacit.mechanisms.keystream import BEGINS_AT, Keystream

pytest.importorskip("numba")
from tacit.mechanisms import aes_kernel  # it needs Numba

KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")  # FIPS 197, appendix A.1
wide = pytest.mark.parametrize("wide", range(1, aes_kernel.lanes() + 1))


def test_round_keys_are_those_of_the_standard():
    keys = aes_kernel.round_keys(KEY, 2)
    assert keys.shape == (11, 4)
    assert (keys[:, :2] == keys[:, 2:]).all()
    assert keys[0, :2].tobytes() == KEY
    assert keys[1, :2].tobytes().hex() == "a0fafe1788542cb123a339392a6c7605"
    assert keys[10, :2].tobytes().hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"


@wide
@pytest.mark.parametrize("number", [0, 1, 2**64 + 7, 2**96 - 1])
@pytest.mark.parametrize("groups", [1, 2, 37])
def test_words_are_those_of_the_library(wide, number, groups):
    count = groups * aes_kernel.GROUP
    words = np.full(count + 5, 7, dtype=np.int64)
    nonce = np.frombuffer(number.to_bytes(12, "big"), dtype=np.int32)
    aes_kernel.made(wide)(words, aes_kernel.round_keys(KEY, wide), nonce, BEGINS_AT)
    assert words[:count].tolist() == Keystream(KEY).block(number, count // 2).tolist()
    assert words[count:].tolist() == [7] * 5  # less than a group is not written


@wide
def test_the_counter_goes_on_over_all_its_bytes(wide):
    words = [np.empty(4 * aes_kernel.GROUP, dtype=np.int64) for _ in range(2)]
    keys, nonce = aes_kernel.round_keys(KEY, wide), np.zeros(3, dtype=np.int32)
    start, step = 2**16 - 20, aes_kernel.GROUP // 2
    aes_kernel.made(wide)(words[0], keys, nonce, start)
    aes_kernel.made(wide)(words[1], keys, nonce, start + step)
    assert words[0][aes_kernel.GROUP :].tolist() == words[1][: -aes_kernel.GROUP].tolist()
    assert len(np.unique(words[0])) == len(words[0])


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ({"aes": True, "avx2": True, "vaes": True}, 2),
        ({"aes": True, "avx2": True}, 1),
        ({"aes": True}, 0),
        ({"avx2": True, "vaes": True}, 0),
    ],
)
def test_only_instructions_that_are_there_are_used(features, found, monkeypatch):
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: features)
    assert aes_kernel.lanes() == found


def test_none_are_used_where_the_processor_is_unknown_or_numba_is_told_another(monkeypatch):
    def unknown():
        raise RuntimeError

    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", unknown)
    assert aes_kernel.lanes() == 0
    monkeypatch.undo()
    for name, value in (("CPU_NAME", "generic"), ("CPU_FEATURES", ""), ("ENABLE_AVX", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(f"numba.config.{name}", value)
            assert aes_kernel.lanes() == 0
