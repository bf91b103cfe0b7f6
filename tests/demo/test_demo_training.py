"""The demo trains, reports, and resumes with its budget intact."""

import json
import math
import os
import re
import signal

import pytest
import torch

from tacit.demo import run
from tacit.demo.data import load
from tacit.demo.plain import train_plain
from tacit.demo.private import PrivateRun
from tacit.demo.progress import TrainingProgress
from tacit.demo.run import DemoInterrupt, run_demo
from tacit.errors import ConfigurationError, TacitError

TINY = {"epochs": 2, "batch_size": 480, "seed": 1}
STEPS = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_demo(TINY, folder / "made")


@pytest.fixture
def interrupted(tmp_path):
    with pytest.raises(DemoInterrupt, match=r"interrupted after 4 of 6 steps, at epsilon .* --resume --out"):
        run_demo(TINY, tmp_path, on_step=interrupt_at(4))
    return tmp_path


def interrupt_at(last):
    def on_step(step):
        if step == last:
            raise KeyboardInterrupt

    return on_step


def privacy(folder):
    return json.loads((folder / "privacy.json").read_text())


def test_writes_everything(finished):
    folder, result = finished
    names = {path.name for path in (folder / "made").iterdir()}
    plots = {"accuracy", "epsilon", "gradient_norms", "fraction_clipped", "confusion_matrix"}
    expected = {"report.html", "privacy.json", "run.json", "checkpoint.pt"} | {f"{plot}.png" for plot in plots}
    assert names == expected
    assert result.page == folder / "made" / "report.html"


def test_numbers_are_consistent(finished):
    folder, result = finished
    numbers = privacy(folder / "made")
    assert 0 < numbers["epsilon"] <= numbers["target_epsilon"] == 3.0
    assert numbers["epsilon"] == result.epsilon
    assert numbers["steps"] == numbers["planned_steps"] == result.steps == STEPS
    assert numbers["sample_rate"] == 1 / 3
    assert numbers["expected_batch_size"] == pytest.approx(1437 / 3)
    assert (numbers["records"], numbers["test_records"]) == (1437, 360)
    assert numbers["adjacency"] == "add-or-remove-one"
    assert numbers["accountant"] == "pld"
    assert numbers["delta"] == 1e-4
    assert numbers["seed"] == 1
    assert numbers["test_accuracy"] == result.accuracy
    assert numbers["test_accuracy_without_privacy"] == result.plain_accuracy
    assert numbers["noise_multiplier"] > 0
    assert "operating system" in numbers["noise_source"]
    assert set(numbers["versions"]) >= {"python", "tacit", "torch"}


def test_curves(finished):
    folder, result = finished
    record = json.loads((folder / "made" / "run.json").read_text())
    points = record["points"]
    assert [point["step"] for point in points] == [1, 2, 4, 6]
    epsilons = [point["epsilon"] for point in points]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == result.epsilon
    assert points[-1]["accuracy"] == result.accuracy
    assert [step for step, _ in record["clipped"]] == [1, 2, 3, 4, 5, 6]
    # An epoch meets each image once in expectation.
    assert sum(record["first_norms"]) == pytest.approx(1437, rel=0.2)
    assert sum(record["last_norms"]) == pytest.approx(1437, rel=0.2)


def test_last_line(finished):
    _, result = finished
    pattern = r"test accuracy 0\.\d{3} \(without privacy 0\.\d{3}\) at epsilon (\d\.\d{3}), delta 1e-04"
    match = re.fullmatch(pattern, result.line)
    assert match
    assert result.epsilon <= float(match[1]) <= 3.0


def test_resume_ends_as_planned(finished, interrupted):
    _, uninterrupted = finished
    assert not (interrupted / "report.html").exists()
    saved = json.loads((interrupted / "run.json").read_text())
    assert saved["points"][-1]["step"] == 4
    steps = []
    result = run_demo({}, interrupted, resume=True, on_step=steps.append)
    assert steps == [5, 6]
    assert result.steps == STEPS
    assert result.epsilon == uninterrupted.epsilon
    assert result.epsilon <= 3.0
    record = json.loads((interrupted / "run.json").read_text())
    assert [point["step"] for point in record["points"]] == [1, 2, 4, 6]
    settings = torch.load(interrupted / "checkpoint.pt")["settings"]
    assert privacy(interrupted)["noise_multiplier"] == settings["noise_multiplier"]


def test_resume_loads_the_weights(interrupted):
    private, _ = run._resumed({}, interrupted)
    saved = torch.load(interrupted / "checkpoint.pt")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in private.network.state_dict().items())
    assert private.steps == 4


def test_resume_twice_and_after_the_end(interrupted):
    with pytest.raises(DemoInterrupt):
        run_demo({}, interrupted, resume=True, on_step=interrupt_at(5))
    first = run_demo(TINY, interrupted, resume=True)
    steps = []
    again = run_demo({}, interrupted, resume=True, on_step=steps.append)
    assert steps == []
    assert (again.accuracy, again.epsilon, again.steps) == (first.accuracy, first.epsilon, STEPS)


def test_control_c_waits_for_the_end_of_the_step(tmp_path):
    def press(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(DemoInterrupt, match="after 2 of 6"):
        run_demo(TINY, tmp_path, on_step=press)
    assert signal.getsignal(signal.SIGINT) is handler
    assert run_demo({}, tmp_path, resume=True).steps == STEPS


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", 4.0), ("delta", 1e-5), ("epochs", 3), ("batch_size", 256), ("max_grad_norm", 2.0), ("seed", 0)],
)
def test_resume_refuses_another_plan(finished, name, value):
    folder, _ = finished
    with pytest.raises(ConfigurationError, match=f"--{name.replace('_', '-')} is"):
        run_demo({name: value}, folder / "made", resume=True)


def test_resume_trusts_the_accountant(interrupted):
    path = interrupted / "run.json"
    record = json.loads(path.read_text())
    record["points"].append({"step": 6, "accuracy": 1.0, "epsilon": 0.1})
    record["clipped"].append([6, 0.5])
    path.write_text(json.dumps(record))
    assert run_demo({}, interrupted, resume=True).steps == STEPS
    points = json.loads(path.read_text())["points"]
    assert [point["step"] for point in points] == [1, 2, 4, 6]
    assert points[-1]["epsilon"] > 2.9


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 3, "above the target"),
        ("epsilon", 2.0, "above the target"),
        ("max_grad_norm", 2.0, "different runs"),
    ],
)
def test_resume_refuses_a_record_that_would_overspend(interrupted, name, value, message):
    path = interrupted / "run.json"
    record = json.loads(path.read_text())
    record["options"][name] = value
    path.write_text(json.dumps(record))
    with pytest.raises(TacitError, match=message):
        run_demo({}, interrupted, resume=True)


def test_resume_refuses_torn_files(interrupted):
    record, checkpoint = (interrupted / "run.json").read_text(), (interrupted / "checkpoint.pt").read_bytes()
    (interrupted / "run.json").write_text(record[:100])
    with pytest.raises(TacitError, match="cannot be read"):
        run_demo({}, interrupted, resume=True)
    (interrupted / "run.json").unlink()
    with pytest.raises(TacitError, match="there is no"):
        run_demo({}, interrupted, resume=True)
    (interrupted / "run.json").write_text(record)
    (interrupted / "checkpoint.pt").write_bytes(checkpoint[:-100])
    with pytest.raises(TacitError, match="cannot be read"):
        run_demo({}, interrupted, resume=True)


def test_seed_fixes_the_plain_run_only(tmp_path):
    torch.manual_seed(0)
    digits = load(1)
    options = run.DemoOptions(**TINY)
    with run._one_thread(), TrainingProgress() as progress:
        plain = [train_plain(options, digits, progress) for _ in range(2)]
        private = []
        for name in ("a", "b"):
            torch.manual_seed(0)
            (tmp_path / name).mkdir()
            private.append(PrivateRun.start(options, digits, tmp_path / name))
            private[-1].train(progress, lambda _: None)
    assert plain[0] == plain[1]
    first, second = (run_.network.state_dict() for run_ in private)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_split_is_stratified_and_seeded():
    one, same, other = load(3), load(3), load(4)
    assert torch.equal(one.train_images, same.train_images)
    assert not torch.equal(one.train_labels, other.train_labels)
    assert one.records + len(one.test_labels) == 1797
    assert all(34 <= count <= 38 for count in torch.bincount(one.test_labels).tolist())
    assert one.train_images.shape == (1437, 1, 8, 8)
    assert math.isclose(float(one.train_images.max()), 1.0)
