"""What an engine offers besides training, in several processes."""

import pytest
import torch
from processes import results
from scenarios import around, set_up_too_late


def test_checks_statistics_checkpoints_and_detaching(tmp_path):
    first, second = results(2, around, str(tmp_path / "checkpoint"))
    for one in (first, second):
        assert one["check"]
        assert one["first step"]
        assert one["stats"][1:] == (first["stats"][0] + second["stats"][0],) * 2
        assert one["clipped"][1] == pytest.approx(first["clipped"][0] + second["clipped"][0])
        assert one["resumed"] == 1
        assert one["same"]
        assert one["end"] == 1 + 2  # 30 records in batches of 2 × 8
        assert one["again"] == 1
    assert all(torch.equal(a, b) for a, b in zip(first["plain"], second["plain"], strict=True))


def test_a_process_group_that_is_set_up_too_late_is_refused():
    (words,) = results(1, set_up_too_late)
    assert "Call init_process_group() first" in words
