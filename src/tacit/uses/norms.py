"""The squared norms of all uses of a clip, and what has to be known before they are summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tacit.uses.base import Use
from tacit.uses.questions import answers, answers_at_once, collected
from tacit.uses.together import Together


class Known(NamedTuple):
    """What the values of a clip turned out to be.

    Attributes:
        finite: all samples are.
        excessive: names whose sums may have terms that are to be summed apart; see `Use.excess`.
    """

    finite: bool
    excessive: frozenset[str]

    def limit(self, name: str, limit: float) -> float | None:
        """What a sum is told of the longest a clipped gradient may be: nothing if it need not look."""
        return limit if name in self.excessive else None


class Norms:
    """Squared norms of uses.

    A use may have to look at its norms, and to compute some again. On a CPU it does so at once. Elsewhere norms are
    computed as though there were no need, and :meth:`known` asks whether there was, of all uses together.

    Args:
        uses: by name, all on one device.
        together: some of them, taken together.

    Attributes:
        names: of all uses, in the order of :meth:`squares`.
    """

    def __init__(self, uses: Mapping[str, Use], together: Together | None = None) -> None:
        joint = {} if together is None else dict.fromkeys(together.names)
        self._together = together
        self._others = {name: use for name, use in uses.items() if name not in joint}
        self.names = (*joint, *self._others)
        first = next(iter(uses.values()), None)
        self._at_once = first is None or answers_at_once(first.device)
        self._questions: dict[str, list[Tensor]] = {}
        self._found = {name: self._norms(name, use) for name, use in self._others.items()}

    def _norms(self, name: str, use: Use) -> Tensor:
        if self._at_once:
            return use.squared_norms()
        with collected() as self._questions[name]:
            return use.squared_norms()

    def squares(self) -> list[Tensor]:
        """Squared norms ``(…, B)``, float64, in one or more parts."""
        parts = [] if self._together is None else [self._together.squared_norms()]
        return parts + ([torch.stack(list(self._found.values()))] if self._found else [])

    def known(self, finite: Tensor, factors: Mapping[str, Tensor], limit: float) -> Known | None:
        """What has to be known before sums are formed; other devices than the CPU are waited for, once.

        Args:
            finite: ``(B,)``, bool: which samples are.
            factors: of each name, ``(B,)``.
            limit: what no sample's clipped gradient is longer than.

        Returns:
            It, or None if norms were computed again: factors are to be made anew, and this is to be asked again.
        """
        if self._at_once:  # sums look for themselves
            return Known(bool(finite.all()), frozenset(self._others))
        of_norms, self._questions = self._questions, {}
        of_sums = {name: self._excess(use, factors[name], limit) for name, use in self._others.items()}
        asked = [(name, each) for questions in (of_norms, of_sums) for name in questions for each in questions[name]]
        all_finite, *found = answers([finite.all(), *(question for _, question in asked)])
        yes = [number for number, answer in enumerate(found) if answer]
        first = sum(map(len, of_norms.values()))
        excessive = frozenset(asked[number][0] for number in yes if number >= first)
        again = dict.fromkeys(asked[number][0] for number in yes if number < first)
        for name in {*again, *excessive}:  # lengths may rest on what was wrong
            self._others[name].forget()
        for name in again:
            self._found[name] = self._others[name].squared_norms()
        return None if again else Known(all_finite, excessive)

    @staticmethod
    def _excess(use: Use, factors: Tensor, limit: float) -> list[Tensor]:
        """The questions whether a sum has to look for itself."""
        with collected() as questions:
            mask = use.excess(factors, limit)
        return questions if mask is None else [*questions, mask.any()]
