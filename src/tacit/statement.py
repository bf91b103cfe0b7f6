"""The privacy statement of a run: what is promised, to whom, by what means, and what is not."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tacit.accounting import Accountant, gaussian_mu
from tacit.numbers import downward, upward
from tacit.plan import PrivacyPlan

NEIGHBOURS = {
    "add-or-remove-one": "two data sets are neighbours if one is the other with one record added or removed",
    "zero-out-one": "two data sets are neighbours if one is the other with one record replaced by a blank one",
    "replace-one": "two data sets are neighbours if one is the other with one record replaced by any other one",
}
_RATES = (1e-3, 1e-5)
_COVERED = (
    "The training: the released weights, and whatever is computed from them alone.",
    "Not covered: the choice of hyper-parameters on the same data; what is looked at on the way (engine.stats, training"
    " losses, gradient norms); other runs on the same data that are not in its ledger.",
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What was promised. The fields follow "How to DP-fy ML" (Ponomareva et al. 2023, arXiv:2303.00654), section 5.3.

    Attributes:
        facts: everything, as JSON-able data; an infinite number is None.
        lines: (term, sentence) pairs, in reading order.
    """

    facts: Mapping[str, Any]
    lines: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """One line for each term."""
        return "\n".join(f"{term}: {sentence}" for term, sentence in self.lines)

    @property
    def markdown(self) -> str:
        """A section with one bullet for each term."""
        bullets = "\n".join(f"- **{term}**: {sentence}" for term, sentence in self.lines)
        return f"## Privacy statement\n\n{bullets}\n"

    def to_json(self) -> str:
        """The facts as one JSON object."""
        return json.dumps(self.facts, allow_nan=False)


def make_statement(
    accountant: Accountant, plan: PrivacyPlan, *, delta: float, unit: str, noise_source: str, ledger: str | None
) -> Statement:
    """Say what a history promises at ``delta``.

    Args:
        accountant: knows the history.
        plan: the run's settings.
        delta: strictly between 0 and 1.
        unit: what one record is, in a word: "record", "user", "document".
        noise_source: where the noise came from, in words.
        ledger: the ledger's path, if there is one.
    """
    lower, upper = (bound if math.isfinite(bound) else None for bound in accountant.get_interval(delta))
    curve = accountant.get_trade_off()
    rates = {f"{rate:g}": curve.true_positive_rate(rate) for rate in _RATES}
    facts: dict[str, Any] = {
        "unit": unit,
        "adjacency": accountant.adjacency,
        "delta": delta,
        "epsilon_lower": lower,
        "epsilon_upper": upper,
        "mu_at_delta": None if upper is None else gaussian_mu(upper, delta),
        "true_positive_rate": rates,
        "releases": accountant.steps,
        "records": plan.sampling.units,
        "sampling": plan.sampling.description,
        "mechanism": "Gaussian",
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "clipping": plan.clipping,
        "noise_source": noise_source,
        "ledger": ledger,
        "versions": {name: version(name) for name in ("tacit", "torch")} | {"python": platform.python_version()},
    }
    facts["warnings"] = _warnings(facts)
    return Statement(facts, tuple(_lines(facts)))


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    found = []
    if not facts["releases"]:
        found.append("Nothing was released yet.")
    if facts["epsilon_upper"] is None:
        found.append("Noise was missing from at least one release: nothing is promised.")
    if facts["delta"] * facts["records"] >= 1:
        found.append(f"δ is not below one over the number of records ({facts['records']}).")
    if "reproducible" in facts["noise_source"]:
        found.append("The noise is reproducible: whoever knows the seed can subtract it.")
    return found


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    upper = facts["epsilon_upper"]
    if upper is None:
        guarantee = "none: epsilon is infinite."
    else:
        guarantee = (
            f"(epsilon, delta)-differentially private with epsilon <= {upward(upper, 4)} (and at least "
            f"{downward(facts['epsilon_lower'], 4)}) at delta = {facts['delta']:g}."
        )
    rates = "; ".join(
        f"with {float(rate):.3%} false alarms, at most {bound:.3%} true ones"
        for rate, bound in facts["true_positive_rate"].items()
    )
    on_record = f", on record in {facts['ledger']}" if facts["ledger"] else ""
    scale = facts["noise_multiplier"] * facts["max_grad_norm"]
    lines = [
        ("Guarantee", guarantee),
        ("What an attacker can do", f"say of one {facts['unit']} whether it was in the training data: {rates}."),
        ("Unit of privacy", f"one {facts['unit']} of {facts['records']:,} in the data set."),
        ("Neighbouring data sets", f"{facts['adjacency']}: {NEIGHBOURS[facts['adjacency']]}."),
        ("Sampler", f"{facts['sampling'].rstrip('.')}."),
        (
            "Mechanism",
            f"per-sample gradients clipped to {facts['max_grad_norm']:g}, Gaussian noise of deviation {scale:.4g} "
            f"(multiplier {facts['noise_multiplier']:.4g}) on their sum.",
        ),
        ("Source of the noise", f"{facts['noise_source']}."),
        ("Releases", f"{facts['releases']:,}, each counted{on_record}."),
        ("Covered", " ".join(_COVERED)),
        ("Software", ", ".join(f"{name} {number}" for name, number in facts["versions"].items()) + "."),
    ]
    return lines + [("Warning", warning) for warning in facts["warnings"]]
