"""The tables of docs/accounting.md."""

import re

from benchmarks.accounting_table import SETS, TARGET, gaussian_table, pld, prv, renyi, width

from tacit.accounting import Interval


def test_the_document_has_every_set_and_narrow_intervals() -> None:
    assert len(SETS) >= 30
    rows = [line.strip("| ").split(" | ") for line in TARGET.read_text().splitlines() if line.startswith("| ")]
    sampled = [row for row in rows if len(row) == 11 and re.match(r"[\d.]+$", row[0])]
    assert len(sampled) == len(SETS)
    assert all(float(row[4]) <= float(row[5]) and float(row[6].split()[0]) <= 1.0 for row in sampled)


def test_closed_forms_lie_inside() -> None:
    assert gaussian_table().count("\n") == 5


def test_peers_answer_or_are_left_out() -> None:
    case = (1.0, 0.05, 20, 1e-5)
    assert 0.5 < float(pld(case)) <= float(renyi(case))
    assert pld((1.0, 0.05, 20, 1e-20)) == "—"
    assert prv(case) == "—" or float(prv(case)) > 0.5
    assert width(Interval(0.0, 0.0, "closed form")) == "0"
