import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.mechanisms.keystream import Keystream, encrypt

KEY = bytes(range(16))


def test_words_are_the_cipher_of_a_counter():
    """The counter is the block's number in 96 bits, and the piece's, which begins at 2, in 32."""
    found = Keystream(KEY).block(5, 3)
    ecb = Cipher(algorithms.AES128(KEY), modes.ECB()).encryptor()
    text = b"".join((5).to_bytes(12, "big") + (2 + piece).to_bytes(4, "big") for piece in range(3))
    assert found.tolist() == np.frombuffer(ecb.update(text), dtype=np.int64).tolist()


@pytest.mark.parametrize("number", [0, 1, 2**64])
def test_both_modes_give_the_same_words(number):
    """Which is the quicker one differs between processors, and processes with one key must agree."""
    text, outs = memoryview(bytes(2**16)), [bytearray(2**16 + 15) for _ in range(2)]
    for out, tagged in zip(outs, (True, False), strict=True):
        encrypt(algorithms.AES128(KEY), number, text, out, tagged=tagged)
    assert outs[0] == outs[1]


def test_blocks_and_keys_share_no_words():
    streams = [Keystream(key) for key in (KEY, bytes(16))]
    words = torch.cat([stream.block(number, 512).clone() for stream in streams for number in range(40)])
    assert len(words.unique()) == len(words)
