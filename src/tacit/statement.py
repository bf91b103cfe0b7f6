"""The privacy statement of a run: what is promised, to whom, by what means, and what is not."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tacit.accounting import Accountant, gaussian_mu
from tacit.errors import ConfigurationError
from tacit.numbers import compact, downward, upward

if TYPE_CHECKING:
    from tacit.plan import PrivacyPlan

NEIGHBOURS = {
    "add-or-remove-one": "two data sets are neighbours if one is the other with one {unit} added or removed",
    "zero-out-one": "two data sets are neighbours if one is the other with one {unit} blanked, and the others in place",
    "replace-one": "two data sets are neighbours if one is the other with one {unit} replaced by any other one",
}
OTHERWISE = {
    "add-or-remove-one": "without it",
    "zero-out-one": "with a blank in its place",
    "replace-one": "with any other in its place",
}
_FORMAT = "tacit.statement"
_RATES = (1e-3, 1e-5)
_COVERED = "The training: the released weights, those after each step, too, and whatever is computed from them alone."
_NOT_COVERED = (
    "The choice of hyper-parameters on the same data.",
    "What is looked at on the way: training losses, gradient norms, engine.stats.",
    "Other runs on the same data, unless they are in the same ledger: what is made public adds up.",
)
GIVEN_DRAWS = (
    "Draws that are known, or come again: batches are drawn by a generator that was given. ε counts on nobody knowing "
    "its seed, and on no other run, before or after, beginning from the same one: it would draw the same batches."
)
"""Not covered, where batches are drawn at random."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What was promised.

    The fields are those that "How to DP-fy ML" (Ponomareva et al. 2023, arXiv:2303.00654, section 5.3) and NIST SP
    800-226 ask for: guarantee, unit and neighbours, what is covered, mechanism, sampler, accounting, software.

    Attributes:
        facts: everything, as JSON-able data; an infinite number is None.
    """

    facts: Mapping[str, Any]

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """(term, sentence) pairs, in reading order; what is not covered is in ``facts["not_covered"]``."""
        return tuple(_lines(self.facts))

    @property
    def text(self) -> str:
        """One line for each term."""
        return "\n".join(f"{term}: {sentence}" for term, sentence in [*self.lines, *self._not_covered()])

    @property
    def markdown(self) -> str:
        """A section with one bullet for each term."""
        bullets = "\n".join(f"- **{term}**: {sentence}" for term, sentence in [*self.lines, *self._not_covered()])
        return f"## Privacy statement\n\n{bullets}\n"

    def to_json(self) -> str:
        """The facts as one JSON object; see :meth:`from_json`."""
        return json.dumps(self.facts, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Statement:
        """The statement that :meth:`to_json` wrote.

        Raises:
            ConfigurationError: it is no statement.
        """
        try:
            facts = json.loads(text)
            statement = cls(facts)
            if facts["format"] != _FORMAT:
                raise ValueError(f"format {facts['format']!r}")
            statement.text  # noqa: B018 (all fields are there)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"this is no privacy statement as engine.statement() makes it ({error})."
            ) from error
        return statement

    def _not_covered(self) -> list[tuple[str, str]]:
        return [("Not covered", sentence) for sentence in self.facts["not_covered"]]


def make_statement(
    accountant: Accountant,
    plan: PrivacyPlan,
    *,
    delta: float,
    unit: str,
    noise_source: str,
    ledger: str | None,
    not_covered: Sequence[str] = (),
) -> Statement:
    """Say what a history promises at ``delta``.

    Args:
        accountant: knows the history.
        plan: the run's settings.
        delta: strictly between 0 and 1.
        unit: what one unit of privacy is, in a word: "record", "user", "document".
        noise_source: where the noise came from, in words.
        ledger: the ledger's path, if there is one.
        not_covered: more that ε says nothing about, in sentences.
    """
    interval = accountant.get_interval(delta)
    lower, upper = (bound if math.isfinite(bound) else None for bound in interval)
    curve = accountant.get_trade_off()
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "unit": unit,
        "units": plan.sampling.units,
        "records": plan.sampling.records,
        "adjacency": accountant.adjacency,
        "delta": delta,
        "epsilon_lower": lower,
        "epsilon_upper": upper,
        "accountant": accountant.mechanism(),
        "accounting": interval.method,
        "mu_at_delta": None if upper is None else gaussian_mu(upper, delta),
        "true_positive_rate": {f"{rate:g}": curve.true_positive_rate(rate) for rate in _RATES},
        "releases": accountant.steps,
        "sampling": plan.sampling.description,
        "amplified": plan.sampling.amplified,
        "expected_batch_size": plan.sampling.expected_batch_size,
        "mechanism": "Gaussian",
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.policy.sensitivity,
        "clipping": plan.clipping,
        "noise_source": noise_source,
        "ledger": ledger,
        "trust": "central",
        "covered": _COVERED,
        "not_covered": [*_NOT_COVERED, *not_covered],
        "versions": {name: version(name) for name in ("tacit", "torch", "scipy", "cryptography")}
        | {"python": platform.python_version()},
    }
    facts["warnings"] = _warnings(facts)
    if len({(release.kind, release.noise_multiplier) for release, _ in accountant.history}) > 1:
        facts["warnings"].append(
            "Noise or sampling changed in the course of the releases: mechanism and sampler are the latest ones, and "
            "epsilon is that of all."
        )
    return Statement(facts)


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    found = []
    if not facts["releases"]:
        found.append("Nothing was released yet.")
    if facts["epsilon_upper"] is None:
        found.append("Noise was missing from at least one release: nothing is promised.")
    if facts["delta"] * facts["units"] >= 1:
        found.append(
            f"δ is not below one over the number of {facts['unit']}s ({facts['units']}): publishing a whole one now "
            "and then would satisfy that. Choose a smaller δ."
        )
    if "reproducible" in facts["noise_source"]:
        found.append("The noise is reproducible: whoever knows the seed can subtract it.")
    return found


def _guarantee(facts: Mapping[str, Any]) -> str:
    upper = facts["epsilon_upper"]
    if upper is None:
        return "None: ε is infinite, because noise was missing from at least one release."
    odds = upward(math.exp(min(upper, 700.0)), 1) if upper < 20 else f"e^{upward(upper, 1)}"
    unit, lower, delta = facts["unit"], facts["epsilon_lower"], compact(facts["delta"])
    bounds = f"ε ≤ {upward(upper, 4)} (and at least {downward(lower, 4)})"
    return (
        f"(ε, δ)-differentially private with {bounds} at δ = {delta}. Whatever is released is at most {odds} times "
        f"as likely with any one {unit} as {OTHERWISE[facts['adjacency']]}, and the other way round, but for a "
        "probability of δ."
    )


def _over(clipping: str) -> str:
    if clipping == "flat":
        return "over all weights, is clipped to"
    return "clipped in groups of weights, has over all weights at most"


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rates = "; ".join(
        f"with {float(rate):.3%} false alarms, at most {bound:.3%} true ones"
        for rate, bound in facts["true_positive_rate"].items()
    )
    on_record = f", on record in {facts['ledger']}" if facts["ledger"] else ""
    unit, scale = facts["unit"], facts["noise_multiplier"] * facts["max_grad_norm"]
    lines = [
        ("Guarantee", _guarantee(facts)),
        ("What an attacker can do", f"Say of one {unit} whether it was in the training data: {rates}."),
        ("Unit of privacy", f"One {unit} of {facts['units']:,} in the training data."),
        ("Neighbouring data sets", f"{facts['adjacency']}: {NEIGHBOURS[facts['adjacency']].format(unit=unit)}."),
        ("Trust", "Central: whoever trains sees the data; what is released hides it."),
        (
            "Sampler",
            f"{facts['sampling'].rstrip('.')}. It ran: batches that it did not draw are refused, and each is released "
            "at most once.",
        ),
        (
            "Mechanism",
            f"The gradient of each {unit}, {_over(facts['clipping'])} an l2 norm of {facts['max_grad_norm']:g}; "
            f"Gaussian noise of deviation {scale:.4g} (multiplier {facts['noise_multiplier']:.4g}) is added to every "
            "coordinate of their sum.",
        ),
        ("Source of the noise", f"{facts['noise_source']}."),
        ("Releases", f"{facts['releases']:,} noisy gradients, each counted{on_record}."),
        ("Accounting", f"{facts['accounting']}, of what ran; the reported ε is the upper end of an interval."),
        ("Covered", facts["covered"]),
        ("Software", ", ".join(f"{name} {number}" for name, number in facts["versions"].items()) + "."),
    ]
    return lines + [("Warning", warning) for warning in facts["warnings"]]
