"""The privacy statement in words."""

from __future__ import annotations

import math

from tacit.errors import ConfigurationError
from tacit.numbers import compact, upward
from tacit.report.content import PrivacyFacts
from tacit.statement import NEIGHBOURS

_MECHANISMS = {
    "pld": "privacy loss distributions, composed numerically",
    "rdp": "Rényi differential privacy",
}


def privacy_statement(facts: PrivacyFacts) -> list[tuple[str, str]]:
    """What is promised, to whom and by what means: (term, sentence) pairs in reading order.

    Raises:
        ConfigurationError: the adjacency is not a known one.
    """
    if facts.adjacency not in NEIGHBOURS:
        raise ConfigurationError(
            f"adjacency is {facts.adjacency!r}, for which there are no words: known are "
            f"{', '.join(map(repr, NEIGHBOURS))}."
        )
    scale = facts.noise_multiplier * facts.max_grad_norm
    return [
        ("Guarantee", _guarantee(facts)),
        ("Unit of privacy", f"{facts.unit}: one record of the {facts.records:,} in the training data."),
        ("Neighbouring data sets", f"{facts.adjacency}: {NEIGHBOURS[facts.adjacency]}."),
        ("Sampler", f"{facts.sampling[:1].upper()}{facts.sampling[1:].rstrip('.')}."),
        (
            "Clipping bound",
            f"{facts.max_grad_norm:g}: each record's gradient, over all weights, is scaled down to at most this "
            "l2 norm.",
        ),
        (
            "Mechanism",
            f"Gaussian mechanism with noise multiplier {facts.noise_multiplier:.4f}: normal noise of standard "
            f"deviation {scale:.4f} (multiplier × clipping bound) is added to every coordinate of the summed gradient.",
        ),
        ("Source of the noise", f"{facts.noise_source}."),
        ("Releases", f"{facts.releases:,} noisy gradients, one for each optimizer step; each is in ε."),
        ("Accountant", f"{facts.accountant}: {_MECHANISMS.get(facts.accountant, 'see the documentation')}."),
        ("Covered", "The training: the weights of the private model, and whatever is computed from them alone."),
    ]


def not_covered(facts: PrivacyFacts) -> list[str]:
    """What ε says nothing about, in sentences."""
    lines = [
        "The choice of hyper-parameters (network, learning rate, epochs, batch size, clipping bound): they were found "
        "by trying on this data.",
        "The plots of gradient norms and of clipping in this report: they are computed from the training data "
        "without noise.",
        "The plots of accuracy and the confusion matrix: they are computed from the test images, without noise.",
        "The model trained without privacy: it has none.",
        "Other runs on the same data: the ε of every run that is made public adds up.",
    ]
    if facts.delta * facts.records >= 1:
        lines.append(
            f"Rare but total failures: δ = {compact(facts.delta)} is not below 1/{facts.records}, and publishing a "
            "whole record now and then would satisfy that. Choose a smaller δ."
        )
    return lines


def _guarantee(facts: PrivacyFacts) -> str:
    if not math.isfinite(facts.epsilon):
        return "None: ε is infinite, because noise was missing from at least one release."
    return (
        f"The private training is (ε, δ)-differentially private with ε = {upward(facts.epsilon)} at "
        f"δ = {compact(facts.delta)} (target: ε ≤ {facts.target_epsilon:g}). Whatever the trained weights reveal is "
        f"at most exp(ε) = {upward(math.exp(facts.epsilon), 1)} times as likely with any one record as without it, and "
        "the other way round, up to a probability of δ."
    )
