"""What an engine offers besides training, in several processes."""

import pytest
import torch
from processes import results
from scenarios import around, data, model_of, resumes, saves, set_up_too_late


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


def test_a_sharded_run_is_saved_whole_and_resumed_by_fewer_processes(tmp_path):
    path = str(tmp_path / "checkpoint")
    saved = results(4, saves, path)
    first = saved[0]
    for one in saved:
        assert one["stats"][1:] == (sum(other["stats"][0] for other in saved),) * 2
        assert one["first step"] == (True, True)
        assert one["again"] == 0
    x, y, _ = data(30)[:16]
    plain = model_of("mlp")
    plain.load_state_dict(first["weights"])
    mean = torch.autograd.grad(torch.nn.functional.cross_entropy(plain(x), y), plain.parameters())
    torch.testing.assert_close(first["plain"], list(mean))
    for world, wrap in ((2, "shard"), (1, "before")):
        for one in results(world, resumes, path, wrap):
            assert all(torch.equal(value, first["weights"][name]) for name, value in one["weights"].items())
            assert all(torch.equal(a, b) for a, b in zip(one["momentum"], first["momentum"], strict=True))
            assert world == 1 or one["blocks"] == max(other["blocks"] for other in saved)
            assert one["steps"] == 3


def test_a_process_group_that_is_set_up_too_late_is_refused():
    (words,) = results(1, set_up_too_late)
    assert "Call init_process_group() first" in words
