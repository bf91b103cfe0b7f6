"""The ledger never shows less than was released, whatever dies; and it composes runs."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from tests.small_run import RECORDS, epoch, make, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from tacit import Ledger, PrivacyEngine
from tacit.accounting import EpochRelease, PoissonRelease, combined, create_accountant, epsilon
from tacit.cli import app
from tacit.errors import CheckpointError, ConfigurationError, LedgerError
from tacit.sampling import UserPoissonSampling


def test_every_release_is_on_record(tmp_path):
    engine, *parts = make(ledger=tmp_path / "a.ledger")
    epoch(*parts)
    ledger = Ledger.existing(tmp_path / "a.ledger")
    assert ledger.releases == engine.accountant.steps == 3
    assert ledger.history() == [(PoissonRelease(1.0, 1 / 3), 3)] == list(engine.accountant.history)
    (run,) = ledger.summary()["runs"]
    assert "Poisson" in run["sampler"]
    assert "AES" in run["noise"]
    assert "tacit" in run["code"]
    assert [row["step"] for row in ledger.rows()] == [1, 2, 3]


def test_runs_over_one_data_set_add_up(tmp_path):
    path = tmp_path / "a.ledger"
    first, *parts = make(ledger=path)
    epoch(*parts)
    other, *others = make(ledger=path, noise_multiplier=2.0)
    assert other.accountant.steps == 3
    epoch(*others)
    both = create_accountant("pld")
    both.record(PoissonRelease(1.0, 1 / 3), 3)
    both.record(PoissonRelease(2.0, 1 / 3), 3)
    assert other.get_epsilon(1e-5) == both.get_epsilon(1e-5)
    assert first.get_epsilon(1e-5) == both.get_epsilon(1e-5)  # it is told of what the other has made since


def test_engines_that_share_a_ledger_object_count_their_own_passes(tmp_path):
    """At the same time: a pass of each is two passes over the data."""
    ledger = Ledger(tmp_path / "a.ledger")
    runs = [make(ledger=ledger, poisson_sampling=False) for _ in range(2)]
    for batches in zip(*(loader for *_, loader in runs), strict=True):
        for (_, model, optimizer, _), batch in zip(runs, batches, strict=True):
            step(model, optimizer, batch)
    by_path = create_accountant("pld")
    by_path.replace([(EpochRelease(1.0, 1), 3), (EpochRelease(1.0, 2), 3)])
    for engine, *_ in runs:
        assert engine.get_epsilon(1e-5) == pytest.approx(by_path.get_epsilon(1e-5))
    assert [run["releases"] for run in ledger.summary()["runs"]] == [3, 3]


def test_nobody_writes_between_a_check_and_its_release(tmp_path):
    """Else several runs would each find that a budget allows for one more, and pass it together."""
    engine, *_ = make(ledger=tmp_path / "a.ledger")
    other = sqlite3.connect(tmp_path / "a.ledger", timeout=0, isolation_level=None)
    seen = []

    def check(release):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        seen.append(release)

    recorder = engine._attached._recorder
    recorder.record(PoissonRelease(1.0, 1 / 3), check)
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    with pytest.raises(ConfigurationError, match="no"):
        recorder.record(PoissonRelease(1.0, 1 / 3), lambda _: (_ for _ in ()).throw(ConfigurationError("no")))
    assert len(seen) == Ledger.existing(tmp_path / "a.ledger").releases == 1


def test_a_planned_run_counts_what_is_on_record(tmp_path):
    path = tmp_path / "a.ledger"
    _, *parts = make(ledger=path, noise_multiplier=3.0)
    epoch(*parts)
    model = nn.Linear(3, 2)
    planned = PrivacyEngine()
    planned.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(RECORDS, 3)), batch_size=8),
        target_epsilon=3.0,
        target_delta=1e-5,
        epochs=1,
        max_grad_norm=1.0,
        ledger=path,
    )
    alone = PoissonRelease(planned.noise_multiplier, 1 / 3)
    spent = create_accountant("pld")
    spent.replace([(PoissonRelease(3.0, 1 / 3), 3), (alone, 3)])
    assert 2.99 < spent.get_epsilon(1e-5) <= 3.0


def test_epochs_of_different_runs_are_different_passes(tmp_path):
    path = tmp_path / "a.ledger"
    for _ in range(2):
        ledger = Ledger(path)
        ledger.begin(records=5, sampler="own batches", noise="none")
        ledger.record(EpochRelease(2.0, 1))
        ledger.record(EpochRelease(2.0, 1))
    assert ledger.history() == [(EpochRelease(2.0, 1), 2), (EpochRelease(2.0, 2), 2)]


def test_own_batches_go_on_in_new_epochs(tmp_path):
    path = tmp_path / "a.ledger"
    for _ in range(2):
        engine, *parts = make(ledger=path, poisson_sampling=False)
        epoch(*parts)
    assert len({release for release, _ in engine.accountant.history}) == 2
    assert engine.get_epsilon(1e-5) == epsilon(noise_multiplier=1.0, sample_rate=1.0, steps=2, delta=1e-5)


def test_a_checkpoint_older_than_the_ledger_resumes_with_the_ledgers_spending(tmp_path):
    path, saved = tmp_path / "a.ledger", tmp_path / "run.pt"
    engine, model, optimizer, loader = make(ledger=path)
    epoch(model, optimizer, loader)
    engine.save_checkpoint(saved, module=model, optimizer=optimizer)
    epoch(model, optimizer, loader)
    other, resumed, other_optimizer, _ = make(ledger=path)
    other.load_checkpoint(saved, module=resumed, optimizer=other_optimizer)
    assert other.accountant.steps == 6
    unknown, unknown_model, unknown_optimizer, _ = make(ledger=tmp_path / "new.ledger")
    with pytest.raises(CheckpointError, match="some are not in the ledger.*made without it"):
        unknown.load_checkpoint(saved, module=unknown_model, optimizer=unknown_optimizer)


def test_what_does_not_belong_is_refused(tmp_path):
    path = tmp_path / "a.ledger"
    make(ledger=Ledger(path, name="mail"))
    with pytest.raises(LedgerError, match="'mail' with 24 records.*'mail' with 25.*one ledger for each data set"):
        make(ledger=path, records=25)
    with pytest.raises(LedgerError, match="this data set is 'notes'"):
        make(ledger=Ledger(path, name="notes"))
    with pytest.raises(ConfigurationError, match="a path, or a"):
        make(ledger=3)
    (tmp_path / "text").write_text("no ledger " * 100)
    with pytest.raises(LedgerError, match="could not be opened"):
        make(ledger=tmp_path / "text")
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.existing(tmp_path / "nothing")
    with pytest.raises(LedgerError, match="no run was begun"):
        Ledger(path).record(PoissonRelease(1.0, 0.1))
    engine, *parts = make(ledger=None)
    epoch(*parts)
    engine.detach()
    with pytest.raises(ConfigurationError, match="3 releases, of which some are not in"):
        make(engine, ledger=path)


def test_rows_are_only_added(tmp_path):
    engine, *parts = make(ledger=tmp_path / "a.ledger")
    epoch(*parts)
    file = sqlite3.connect(tmp_path / "a.ledger")
    for statement in ("DELETE FROM releases", "UPDATE releases SET step = 9", "DELETE FROM runs"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            file.execute(statement)
    assert engine.accountant.steps == 3


def test_a_full_disk_stops_the_release_before_it_happens(tmp_path):
    engine, model, optimizer, loader = make(ledger=tmp_path / "a.ledger")
    file = engine._attached.ledger._file
    pages = file.execute("PRAGMA page_count").fetchone()[0]
    file.execute(f"PRAGMA max_page_count = {pages}")
    weights = [model.weight.detach().clone()]

    def train():
        for batch in (batch for _ in range(200) for batch in loader):
            step(model, optimizer, batch)
            weights.append(model.weight.detach().clone())

    with pytest.raises(LedgerError, match=r"database or disk is full.*Nothing was released"):
        train()
    assert torch.equal(model.weight, weights[-1])
    assert Ledger.existing(tmp_path / "a.ledger").releases == engine.accountant.steps == len(weights) - 1


def test_two_writers_wait_for_each_other(tmp_path):
    path = tmp_path / "a.ledger"

    def write(noise):
        ledger = Ledger(path)
        ledger.begin(records=5, sampler="", noise="")
        for _ in range(40):
            ledger.record(PoissonRelease(noise, 0.1))

    threads = [threading.Thread(target=write, args=(1.0 + i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = {}
    for release, count in Ledger(path).history():
        counts[release.noise_multiplier] = counts.get(release.noise_multiplier, 0) + count
    assert counts == {1.0: 40, 2.0: 40, 3.0: 40}


KILLS = 200
CHILD = """
    import os, random, signal, sys, time
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from tacit import Ledger, PrivacyEngine
    from tacit.accounting import epsilon

    torch.set_num_threads(1)
    path, kills = sys.argv[1], int(sys.argv[2])
    random.seed(7)

    def train(told, path, steps):
        model = nn.Linear(3, 2)
        engine = PrivacyEngine(accountant="rdp")
        model, optimizer, loader = engine.make_private(
            module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0,
            data_loader=DataLoader(TensorDataset(torch.randn(24, 3), torch.randint(0, 2, (24,))), batch_size=8),
            max_grad_norm=1.0, ledger=path)
        while steps > 0:
            for x, y in loader:
                steps -= 1
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                os.write(told, b"x")

    train(os.open(os.devnull, os.O_WRONLY), path + ".warm", 1)  # imports take longer than a life below
    released = 0
    for kill in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            train(writer, path, 10**9)
        os.close(writer)
        for _ in range(kill % 3):  # some lives see a release or two, however slow the machine is
            released += len(os.read(reader, 1))
        time.sleep(random.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while seen := os.read(reader, 4096):
            released += len(seen)
        os.close(reader)
        on_record = Ledger.existing(path).releases if os.path.exists(path) else 0
        assert on_record >= released, (kill, on_record, released)
        assert on_record <= released + kill + 1, (kill, on_record, released)
    assert sum(count for _, count in Ledger.existing(path).history()) == on_record
    print(released, on_record)
"""


def test_no_kill_leaves_a_ledger_that_shows_less_than_was_released(tmp_path):
    """At most one release for each killed process is on record and never happened."""
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "a.ledger", str(KILLS)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    released, on_record = map(int, done.stdout.split())
    assert released > KILLS / 4
    assert released <= on_record <= released + KILLS


def test_command_line(tmp_path):
    path = tmp_path / "a.ledger"
    _, *parts = make(ledger=Ledger(path, name="mail"))
    epoch(*parts)
    run = CliRunner().invoke
    shown = run(app, ["ledger", "show", str(path)]).output
    assert "mail: 24 records, 1 runs" in shown
    assert "run 1: 3 releases" in shown
    assert json.loads(run(app, ["ledger", "show", str(path), "--json"]).output)["name"] == "mail"
    found = json.loads(run(app, ["ledger", "epsilon", str(path), "--delta", "1e-5", "--json"]).output)
    assert found["lower"] <= found["upper"] == epsilon(noise_multiplier=1, sample_rate=1 / 3, steps=3, delta=1e-5)
    assert "for 3 releases" in run(app, ["ledger", "epsilon", str(path), "--delta", "1e-5"]).output
    lines = run(app, ["ledger", "export", str(path)]).output.splitlines()
    assert [json.loads(line)["event"]["kind"] for line in lines] == ["poisson"] * 3


@pytest.mark.parametrize(("sampling", "rounds"), [("epochs", 1), ("epochs", 3), ("balls-in-bins", 2)])
def test_passes_of_runs_that_go_on_at_the_same_time_are_different_passes(tmp_path, sampling, rounds):
    """Both loaders count their passes from 1."""
    path = tmp_path / "both.ledger"
    one, *ones = make(ledger=path, sampling=sampling)
    other, *others = make(ledger=path, sampling=sampling)
    for _ in range(rounds):
        epoch(*ones)
        other.budget(100.0, 1e-3)
        epoch(*others)
        assert other.remaining_steps > 0
    accountant = create_accountant("pld")
    accountant.replace(Ledger(path).history())
    assert accountant.steps == 6 * rounds
    assert one.get_epsilon(1e-3) == other.get_epsilon(1e-3) == accountant.get_epsilon(1e-3)
    alone, *parts = make(sampling=sampling)
    for _ in range(2 * rounds):
        epoch(*parts)
    assert accountant.get_epsilon(1e-3) == pytest.approx(alone.get_epsilon(1e-3), rel=1e-9)


def test_what_was_released_without_the_ledger_is_not_forgotten(tmp_path):
    path = tmp_path / "gap.ledger"
    engine, *parts = make(ledger=path)
    epoch(*parts)
    engine.detach()
    _, *parts = make(engine)
    epoch(*parts)
    spent = engine.get_epsilon(1e-3)
    engine.detach()
    with pytest.raises(ConfigurationError, match="6 releases, of which some are not in"):
        make(engine, ledger=path)
    assert engine.get_epsilon(1e-3) == spent
    other, *parts = make(ledger=path)
    epoch(*parts)
    other.detach()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ConfigurationError, match="some are not in"):
        make(other, ledger=path)


def test_a_checkpoint_of_other_releases_is_refused_though_their_number_fits(tmp_path):
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make(noise_multiplier=0.5)
    epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer)
    _, *parts = make(ledger=tmp_path / "other.ledger")
    epoch(*parts)
    late, model, optimizer, _ = make(ledger=tmp_path / "other.ledger", noise_multiplier=0.5)
    with pytest.raises(CheckpointError, match="made without it"):
        late.load_checkpoint(path, module=model, optimizer=optimizer)
    own, model, optimizer, loader = make()
    epoch(model, optimizer, loader)
    with pytest.raises(CheckpointError, match="would forget spent budget"):
        own.load_checkpoint(path, module=model, optimizer=optimizer)


def test_units_of_privacy_are_not_mixed(tmp_path):
    users = UserPoissonSampling(torch.arange(RECORDS), 1 / 3, 3, most=1)  # as many users as records
    path = tmp_path / "units.ledger"
    engine, *parts = make(ledger=path)
    epoch(*parts)
    assert engine.accountant.unit == "record"
    engine.detach()
    with pytest.raises(ConfigurationError, match="one record is the unit of privacy"):
        make(engine, sampling=users)
    with pytest.raises(LedgerError, match="in which one record is the unit"):
        make(ledger=path, sampling=users)
    other, model, optimizer, loader = make(sampling=users)
    epoch(model, optimizer, loader)
    with pytest.raises(ConfigurationError, match="combine those of one kind"):
        combined([engine.accountant, other.accountant])
    assert combined([other.accountant]).unit == "user"
    other.detach()
    other.save_checkpoint(tmp_path / "users.pt", module=model, optimizer=optimizer)  # without settings
    late, model, optimizer, _ = make()
    with pytest.raises(CheckpointError, match="one user is the unit of privacy"):
        late.load_checkpoint(tmp_path / "users.pt", module=model, optimizer=optimizer)
