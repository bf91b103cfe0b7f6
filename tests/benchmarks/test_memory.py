import subprocess
import sys
from pathlib import Path

from benchmarks import memory

ROOT = Path(__file__).parents[2]


def test_one_contestant_in_a_process_of_its_own():
    code = (
        "from benchmarks import cases, memory, registry\n"
        "registry.BY_NAME['mlp'] = cases.Case('mlp', '', registry.BY_NAME['mlp'].build, "
        "{'batch': 64, 'inputs': 2000, 'hidden': (2000,)})\n"
        "print(memory.peak_of_steps('mlp', 0, None))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # At least the gradient of the largest layer, and less than ten times the model.
    assert 2000 * 2000 * 4 < int(done.stdout) < 4e8


def test_table():
    text = memory.markdown({"mlp": [("plain", 80.0), ("tacit auto", 88.0)]})
    assert "| mlp | plain | 80 | 1.00 |" in text
    assert "|  | tacit auto | 88 | 1.10 |" in text


def test_resident_grows_with_what_is_held():
    before = memory.resident()
    held = bytearray(50_000_000)
    assert memory.resident() - before > 30_000_000
    assert len(held) == 50_000_000
