"""What gradients were while a backward ran, asked at the step: a GPU would be waited for at each parameter."""

from __future__ import annotations

from typing import NamedTuple

from tacit.capture.fingerprints import Fingerprint, is_alike, numbers


class Seen(NamedTuple):
    """A gradient that was looked at.

    Attributes:
        name: of its parameter.
        due: the fingerprint that it should have.
        found: the one that it has.
        arriving: it came from its gate; if not, it lay in ``.grad``.
    """

    name: str
    due: Fingerprint
    found: Fingerprint
    arriving: bool


class AskedLater:
    """Gradients that were looked at, and not yet found to be what they should be."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []

    def add(self, name: str, due: Fingerprint, found: Fingerprint, *, arriving: bool) -> None:
        self._seen.append(Seen(name, due, found, arriving))

    def clear(self) -> None:
        self._seen.clear()

    def settle(self) -> tuple[list[Seen], int]:
        """Ask, and forget them.

        Returns:
            Those that were others than they should; and how many had been cleared in ``.grad``, which all may be.
        """
        seen, self._seen = self._seen, []
        found = numbers([each for one in seen for each in (one.due, one.found)])
        others = [
            (one, is_now == 0 and not one.arriving)
            for one, due, is_now in zip(seen, found[::2], found[1::2], strict=True)
            if not is_alike(due, is_now)
        ]
        return [one for one, cleared in others if not cleared], sum(cleared for _, cleared in others)
