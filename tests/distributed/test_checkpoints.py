"""Checkpoints that each process writes its part of, and that other processes go on from."""

import pytest
import torch
from checkpoints import case_of, failing, own, resumes, saves, unsaved
from processes import results
from scenarios import last_dimension

from tacit import PrivacyEngine
from tacit.accounting import PoissonRelease

SIDEWAYS = {"shard_placement_fn": last_dimension}


def epsilon(steps: int) -> float:
    """Of a run without a break: 30 records, batches of 24."""
    engine = PrivacyEngine()
    engine.accountant.record(PoissonRelease(1.0, 0.5), steps)
    return engine.get_epsilon(1e-5)


def equal(one, other) -> bool:
    """Whether weights and the optimizer's states are the same, to the last bit."""
    return all(
        torch.equal(one["weights"][name], other["weights"][name])
        and one["adam"][name].keys() == other["adam"][name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        and all(torch.equal(one["adam"][name][key], value) for key, value in other["adam"][name].items())
        for name in one["weights"]
    )


@pytest.mark.parametrize(
    ("world", "wrap", "more", "resumed"),
    [
        (4, "shard", {}, [(2, "shard"), (1, "alone"), (2, "before")]),
        (4, "shard", {"replicas": 2, "model": "conv"}, [(2, "shard"), (1, "shard")]),
        (
            2,
            "shard",
            {"model": "even", "nested": False, "shard": {"shard_placement_fn": last_dimension}},
            [(1, "alone")],
        ),
        (2, "shard", {"model": "gpt2"}, [(1, "alone")]),  # tied weights
        (2, "before", {}, [(2, "shard"), (1, "alone"), (2, "after")]),
        (1, "alone", {}, [(2, "shard")]),
    ],
)
def test_other_processes_go_on(tmp_path, world, wrap, more, resumed):
    path = str(tmp_path / "run")
    saved = results(world, saves, path, case_of(world, wrap, **more), {"given": True})
    first = saved[0]
    assert all(equal(first, one) for one in saved)
    assert first["epsilon"] == epsilon(2)
    model = more.get("model", "mlp")
    for count, how in resumed:
        went_on = results(count, resumes, path, case_of(count, how, model=model), {"given": True})
        for one in went_on:
            assert equal(one, first)
            assert (one["steps"], one["epsilon"]) == (2, first["epsilon"])
            assert (one["later"]["steps"], one["later"]["epsilon"]) == (5, epsilon(5))
            assert one["buffers"] == {0.0}  # process 0's
            assert (count == 1) or (world == 1) or one["blocks"] == max(other["blocks"] for other in saved) > 0
            assert equal(one["later"], went_on[0]["later"])
            assert not equal(one["later"], one)


@pytest.mark.parametrize("wrap", ["shard", "before"])
def test_secret_noise_is_fresh_and_given_noise_is_not(tmp_path, wrap):
    path, case = tmp_path / "run", case_of(2, wrap)
    for given in (False, True):
        results(2, saves, str(path), case, {"given": given})
        generators = torch.load(path / "tacit.pt", weights_only=True)["generators"]
        assert list(generators["noise"]) == (["block"] if given else [])
        ends = [results(2, resumes, str(path), case, {"given": given})[0] for _ in range(2)]
        assert equal(*ends)
        assert equal(*[end["later"] for end in ends]) is given  # the same batches, by the generator that draws them


@pytest.mark.parametrize("wrap", ["shard", "before"])
def test_a_ledger_counts_what_was_released_since(tmp_path, wrap):
    path, more, case = str(tmp_path / "run"), {"ledger": str(tmp_path / "ledger")}, case_of(2, wrap)
    saved = results(2, saves, path, case, more, 1)
    for one in saved:
        assert (one["steps"], one["later"]["steps"]) == (2, 3)
    for one in results(2, resumes, path, case, more):
        assert equal(one, saved[0])
        assert (one["steps"], one["epsilon"]) == (3, epsilon(3))
        assert (one["later"]["steps"], one["later"]["epsilon"]) == (6, epsilon(6))


@pytest.mark.parametrize("wrap", ["shard", "before"])
def test_what_goes_wrong_in_one_process_stops_all(tmp_path, wrap):
    found = results(2, failing, str(tmp_path), wrap)
    for one in found:
        assert "would forget spent budget" in one["behind"]
        assert "CheckpointError: cannot write into" in one["full"]
        assert "OSError: [Errno 28] No space left" in one["full"]
        assert "this process does not see the folder" in one["elsewhere"]
        assert one["left"] == "run"
        assert one["former"] == "True"
        assert "the processes do not train the same way (checkpoint:" in one["two"]
        assert "Error" in one["damaged"]
    damaged = "run is damaged: __1_0.distcp is not the file that was saved with the others"
    assert damaged in found[1]["damaged"]  # it looks at this one


def test_checkpoints_of_ones_own(tmp_path):
    for one, again in results(2, own, str(tmp_path / "run")):
        assert equal(one, again)
        assert (again["steps"], again["epsilon"]) == (2, one["epsilon"])


def test_processes_without_a_private_run(tmp_path):
    for words in results(2, unsaved, str(tmp_path)):
        assert "Call make_private() first" in words
    assert not list(tmp_path.iterdir())
