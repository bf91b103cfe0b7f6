"""Write the tables of ``docs/accounting.md``: our intervals beside what others say.

Run ``python -m benchmarks.accounting_table``.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import dp_accounting
from dp_accounting import rdp
from dp_accounting.pld import PLDAccountant

from tacit.accounting import (
    Adjacency,
    BallsInBinsRelease,
    CyclicRelease,
    EpochRelease,
    FixedSizeRelease,
    Interval,
    PoissonRelease,
    TruncatedRelease,
    create_accountant,
    delta_interval,
    epsilon_interval,
)
from tacit.accounting.composition import dp_event
from tacit.accounting.events import History
from tacit.accounting.gaussian import gaussian_epsilon, gaussian_log_delta

TARGET = Path(__file__).parent.parent / "docs" / "accounting.md"
MARK = "<!-- tables: written by python -m benchmarks.accounting_table -->"

# noise multiplier, sample rate, steps, delta
SETS: list[tuple[float, float, int, float]] = [
    (1.0, 0.01, 10_000, 1e-5),
    (1.1, 0.004, 14_000, 1e-5),
    (0.8, 0.004, 14_000, 1e-5),
    (0.7, 0.01, 1_000, 1e-5),
    (1.3, 0.02, 2_500, 1e-6),
    (2.0, 0.05, 3_000, 1e-6),
    (4.0, 0.05, 3_000, 1e-20),
    (4.0, 0.2, 1_000, 1e-7),
    (8.0, 0.5, 1_000, 1e-8),
    (20.0, 0.3, 100, 1e-5),
    (50.0, 0.999, 10_000, 1e-9),
    (500.0, 0.5, 1_000_000, 1e-10),
    (0.5, 1e-4, 100_000, 1e-8),
    (0.5, 1e-3, 5_000, 1e-6),
    (0.6, 1e-3, 50_000, 1e-6),
    (1.0, 1e-3, 100_000, 1e-6),
    (1.0, 1e-4, 1_000_000, 1e-7),
    (1.0, 1e-5, 1_000_000, 1e-8),
    (0.4, 1e-5, 100_000, 1e-9),
    (0.3, 1e-5, 10_000, 1e-20),
    (0.3, 1e-7, 10_000_000, 1e-12),
    (2.0, 1e-7, 10_000_000, 1e-10),
    (1.0, 0.02, 100_000, 1e-6),
    (3.0, 0.01, 10_000_000, 1e-6),
    (1.0, 0.1, 1, 1e-5),
    (0.5, 0.01, 1, 1e-6),
    (2.0, 0.5, 10, 1e-5),
    (1.0, 0.5, 100, 1e-5),
    (10.0, 0.1, 10_000, 1e-5),
    (1.5, 0.256, 200, 1e-5),
    (100.0, 0.01, 10_000, 1e-5),
    (6.0, 0.03, 20_000, 1e-12),
]
GAUSSIANS: list[tuple[float, int, float]] = [(100.0, 10_000, 1e-12), (1.0, 1, 1e-5), (5.0, 300, 1e-20), (0.5, 2, 1e-6)]


def pld(case: tuple[float, float, int, float]) -> str:
    """dp-accounting's numerical composition, where it answers within its own means."""
    noise, rate, steps, delta = case
    if steps > 1_000_000 or delta < 1e-12:
        return "—"
    event = dp_event([(PoissonRelease(noise, rate), steps)])
    mesh = 1e-4 if steps <= 20_000 else 1e-3
    return f"{PLDAccountant(value_discretization_interval=mesh).compose(event).get_epsilon(delta):.5g}"


def renyi(case: tuple[float, float, int, float]) -> str:
    noise, rate, steps, delta = case
    accountant = rdp.RdpAccountant()
    sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, steps))
    return f"{accountant.get_epsilon(delta):.5g}"


PRV = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
from opacus.accountants import PRVAccountant
noise, rate, steps, delta = map(float, sys.argv[1:])
accountant = PRVAccountant()
accountant.history = [(noise, rate, int(steps))]
print(f"{accountant.get_epsilon(delta):.5g}")
"""


def prv(case: tuple[float, float, int, float]) -> str:
    """Opacus's "prv", where Opacus is installed, within 8 GiB and 20 seconds."""
    if find_spec("opacus") is None:
        return "—"
    command = [sys.executable, "-c", PRV, *map(str, case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "> 20 s"
    except subprocess.CalledProcessError as error:
        return error.stderr.strip().splitlines()[-1].split(":")[0].split(".")[-1]
    return done.stdout.strip()


def width(found: Interval) -> str:
    return f"{100 * (found.upper - found.lower) / found.upper:.2f} %" if found.upper else "0"


def sampled_table() -> str:
    head = "| σ | q | steps | δ | lower | upper | width | seconds | dp-accounting PLD | RDP | Opacus PRV |"
    lines = [head, "|" + " --- |" * 11]
    for case in SETS:
        noise, rate, steps, delta = case
        start = time.perf_counter()
        found = epsilon_interval(noise_multiplier=noise, sample_rate=rate, steps=steps, delta=delta)
        taken = time.perf_counter() - start
        ours = f"{found.lower:.5g} | {found.upper:.5g} | {width(found)} | {taken:.2f}"
        lines.append(
            f"| {noise:g} | {rate:g} | {steps:,} | {delta:.0e} | {ours} | {pld(case)} | {renyi(case)} | {prv(case)} |"
        )
    return "\n".join(lines)


STEPS, BINS = 2_000, 200
OTHERS: list[tuple[str, History, Adjacency | None, int]] = [
    ("Poisson", [(PoissonRelease(1.0, 1 / BINS), STEPS)], None, 1),
    ("Poisson, a record replaced", [(PoissonRelease(1.0, 1 / BINS), STEPS)], "replace-one", 1),
    ("Poisson, four records of one user", [(PoissonRelease(1.0, 1 / BINS), STEPS)], None, 4),
    ("truncated at mean + 6σ", [(TruncatedRelease(1.0, 1 / BINS, 20_000, 160), STEPS)], None, 1),
    ("truncated at mean + 2σ", [(TruncatedRelease(1.0, 1 / BINS, 20_000, 120), STEPS)], None, 1),
    ("balls in bins", [(BallsInBinsRelease(1.0, BINS, epoch), BINS) for epoch in range(STEPS // BINS)], None, 1),
    ("fixed size (replaced)", [(FixedSizeRelease(1.0, 20_000, 100), STEPS)], None, 1),
    (
        "cyclic, 10 groups (blanked)",
        [(CyclicRelease(1.0, 10 / BINS, step % 10, 1), 1) for step in range(STEPS)],
        None,
        1,
    ),
    ("own batches, one epoch (blanked)", [(EpochRelease(1.0, 1), BINS)], None, 1),
    ("own batches, ten epochs (blanked)", [(EpochRelease(1.0, 1 + i), BINS) for i in range(10)], None, 1),
]


def samplers_table() -> str:
    lines = ["| batches | lower | upper | width | seconds |", "|" + " --- |" * 5]
    for name, history, adjacency, group in OTHERS:
        accountant = create_accountant("pld", adjacency)
        accountant.replace(history)
        start = time.perf_counter()
        found = accountant.get_interval(1e-5, group=group)
        taken = time.perf_counter() - start
        lines.append(f"| {name} | {found.lower:.5g} | {found.upper:.5g} | {width(found)} | {taken:.2f} |")
    return "\n".join(lines)


def gaussian_table() -> str:
    lines = ["| σ | steps | δ | closed form | lower | upper | δ at it, lower | upper |", "|" + " --- |" * 8]
    for noise, steps, delta in GAUSSIANS:
        mu = math.sqrt(steps) / noise
        truth = gaussian_epsilon(mu, delta)
        assert math.isclose(math.exp(gaussian_log_delta(mu, truth)), delta, rel_tol=1e-6)
        found = epsilon_interval(noise_multiplier=noise, sample_rate=1.0, steps=steps, delta=delta)
        back = delta_interval(noise_multiplier=noise, sample_rate=1.0, steps=steps, epsilon=truth)
        assert found.lower <= truth <= found.upper
        lines.append(
            f"| {noise:g} | {steps:,} | {delta:.0e} | {truth:.6g} | {found.lower:.6g} | {found.upper:.6g} | "
            f"{back.lower:.6g} | {back.upper:.6g} |"
        )
    return "\n".join(lines)


def main() -> None:
    text = TARGET.read_text().split(MARK)[0]
    text += f"{MARK}\n\n### Poisson sampling\n\n{sampled_table()}\n\n### Without sampling\n\n{gaussian_table()}\n"
    text += (
        f"\n### Other batches and neighbours\n\nAll at σ = 1 and δ = 1e-5, with 100 of 20,000 records a batch and "
        f"{STEPS:,} steps: ten epochs.\n\n{samplers_table()}\n"
    )
    TARGET.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
