"""What processes without the ledger count is what the ledger counts."""

from tacit.accounting.releases import EpochRelease, PoissonRelease
from tacit.ledger import Ledger
from tacit.ledger_copy import LedgerCopy, LedgerState


def begun(path):
    ledger = Ledger(path)
    ledger.begin(records=10, sampler="any", noise="any")
    return ledger


def test_a_copy_follows_release_by_release(tmp_path):
    ledger = begun(tmp_path / "ledger")
    copy = LedgerCopy(ledger.path, ledger.history())
    for release in (PoissonRelease(1.0, 0.5, 1), PoissonRelease(1.0, 0.5, 1), PoissonRelease(2.0, 0.5, 1)):
        ledger.record(release)
        copy.follow(LedgerState(ledger.run, ledger.passes), release)
        assert copy.history() == ledger.history()
        assert copy.releases == ledger.releases


def test_a_copy_takes_over_what_other_runs_have_written(tmp_path):
    ledger, other = (begun(tmp_path / "ledger") for _ in range(2))
    copy = LedgerCopy(ledger.path, [])
    other.record(PoissonRelease(1.0, 0.5, 1))
    history = ledger.history()
    ledger.record(PoissonRelease(2.0, 0.5, 1))
    copy.follow(LedgerState(ledger.run, ledger.passes, history), PoissonRelease(2.0, 0.5, 1))
    assert copy.history() == ledger.history()


def test_passes_have_the_numbers_of_the_ledger(tmp_path):
    other, ledger = (begun(tmp_path / "ledger") for _ in range(2))
    other.record(EpochRelease(1.0, epoch=1))
    ledger.history()
    copy = LedgerCopy(ledger.path, ledger.history())
    copy.follow(LedgerState(ledger.run, ledger.passes))
    planned = [(EpochRelease(1.0, epoch=1), 2), (EpochRelease(1.0, epoch=2), 2)]
    assert copy.planned(planned) == ledger.planned(planned)
    assert [release.epoch for release, _ in copy.planned(planned)] == [2, 3]
