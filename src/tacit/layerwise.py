"""Clipping inside the backward: a group of parameters that has a bound of its own need not wait for the others.

As soon as the last use of a group has come it is normed, scaled and summed, and let go of: nothing is held but sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tacit.capture import ClippedSums, Pass
from tacit.errors import PrivacyError
from tacit.step import Clipper, Factors, by_unit
from tacit.uses import FullPrecision, Norms, Use, join


class LayerwiseClipper:
    """Clips the uses of each group of parameters as they come, and gives the sums to the gates."""

    def __init__(self, plain: Clipper) -> None:
        self._plain = plain

    @property
    def makes_sums_early(self) -> bool:
        return True

    @property
    def holds(self) -> bool:
        return False

    def early(self, run: Pass) -> Groups:
        return Groups(run, self._plain)

    def __call__(self, run: Pass, recorded: Mapping[str, list[Use]]) -> ClippedSums:
        groups = run.early if isinstance(run.early, Groups) else Groups(run, self._plain)
        for name, uses in recorded.items():
            for use in uses:
                groups.take(name, use)
        return groups.finish()


class Groups:
    """The groups of one backward: those that wait for uses, and the clipped sums of the others."""

    def __init__(self, run: Pass, clipper: Clipper) -> None:
        self._run = run
        self._clipper = clipper
        self.restart()

    def restart(self) -> None:
        """Forget a backward that was not finished."""
        self._expected: dict[str, int] | None = None
        self._waiting: dict[str, dict[str, list[Use]]] = {}
        self._missing: dict[str, int] = {}
        self._policy = self._clipper.policy  # one for a whole backward, whatever is set meanwhile
        self._closed: dict[str, Factors] = {}
        self._sums: dict[str, Tensor] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._closed)

    def take(self, name: str, use: Use) -> None:
        """Take one use; the last of a group closes it.

        Raises:
            PrivacyError: the group was clipped already: its samples would get their bound twice.
        """
        group = self._policy.group(name)
        if group in self._closed:
            raise PrivacyError(
                f"more gradients of {name!r} arrived than its forward announced, after its group was clipped. Use "
                "clipping='flat' for this model."
            )
        if group not in self._missing:
            self._missing[group] = self._announced().get(group, 0)
        self._waiting.setdefault(group, {}).setdefault(name, []).extend(by_unit([use], self._run))
        self._missing[group] -= 1
        if self._missing[group] == 0 and not self._run.plain_only:
            self._close(group)

    def _announced(self) -> dict[str, int]:
        """How many uses of each group the forwards have promised."""
        if self._expected is None:
            self._expected = {}
            for name, count in self._run.contacts.items():
                group = self._policy.group(name)
                self._expected[group] = self._expected.get(group, 0) + count
        return self._expected

    def _close(self, group: str) -> None:
        waiting = self._waiting.pop(group)
        with FullPrecision(next(iter(waiting.values()))[0].device):
            uses = {name: join(several) for name, several in waiting.items()}
            for name, use in uses.items():
                self._clipper.observer.used(name, use)
            factors, known = self._clipper.settled(self._run, Norms(uses), self._clipper.scale(self._run), self._policy)
            for name, use in uses.items():
                kept = use if known.finite else use.without(~factors.finite)
                total = kept.weighted_sum(factors.by_name[name], known.limit(name, factors.sensitivity))
                self._sums[name] = self._run.settle_early(name, total)
        self._closed[group] = factors

    def finish(self) -> Groups:
        """Close what still waits (a part of its forward got no gradient), and tell the observer of all."""
        for group in list(self._waiting):
            self._close(group)
        self._clipper.observer.clipped(self._run, self._together(), {})
        return self

    def _together(self) -> Factors:
        closed = list(self._closed.values())
        if not closed:
            return self._clipper.factors(self._run, {}, 1.0, self._policy)
        return Factors(
            torch.linalg.vector_norm(torch.stack([each.norms for each in closed]), dim=0),
            torch.stack([each.finite for each in closed]).all(0),
            {name: factor for each in closed for name, factor in each.by_name.items()},
            self._policy.sensitivity,
            torch.stack([each.scaled for each in closed]).any(0),
        )

    def sum(self, name: str) -> Tensor | None:
        return self._sums.pop(name, None)
