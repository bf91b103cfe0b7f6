"""What one way to train takes, and which other ways would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from tacit.scaling.forms import Formed, Kind, formed, kinds
from tacit.scaling.memory import Estimate, estimate, held, room_for_forms
from tacit.scaling.setting import Mode, Setting, Sharding
from tacit.scaling.survey import Survey
from tacit.scaling.traffic import Traffic, traffic
from tacit.uses import CostModel

MOST_PROCESSES = 4096


@dataclass(frozen=True)
class Forecast:
    """One model, trained in one way.

    Args:
        survey: the model's shapes.
        setting: the way.
        costs: rates of the device.
        memory: bytes that a process has; None if nobody says.
    """

    survey: Survey
    setting: Setting
    costs: CostModel
    memory: float | None = None

    @cached_property
    def uses(self) -> tuple[Formed, ...]:
        """Each parameter's uses in the forms that would be chosen."""
        limit = room_for_forms(self.survey, self.setting, self.memory)
        return formed(self.survey, self.costs, limit=limit, each=not self.setting.mode.holds)

    @cached_property
    def kinds(self) -> list[Kind]:
        """The same, by kind of layer."""
        return kinds(self.uses)

    @property
    def held(self) -> int:
        """Bytes that wait for the clip when the last use has come; in ghost mode and with bounds by layer, none."""
        return held(self.uses) if self.setting.mode.holds else 0

    @cached_property
    def estimate(self) -> Estimate:
        return estimate(self.survey, self.uses, self.setting)

    @property
    def traffic(self) -> list[Traffic]:
        return traffic(self.survey, self.setting)

    @property
    def fits(self) -> bool | None:
        """Whether it fits into the memory; None if nobody says how much there is."""
        return None if self.memory is None else self.estimate.total <= self.memory

    @cached_property
    def plain(self) -> Forecast:
        """The same training without privacy."""
        return self.with_setting(mode=Mode.plain)

    def with_setting(self, **changes: object) -> Forecast:
        """The same in another way."""
        return replace(self, setting=replace(self.setting, **changes))  # type: ignore[arg-type]

    def ways_out(self) -> list[Forecast]:
        """Other ways to train that fit: those with the fewest more processes, and among them the fewest changes."""
        for n in _doublings(self.setting.processes):
            for others in self._others(n):
                found = [other for other in others if other.fits]
                if found:
                    return found
        return []

    def _others(self, processes: int) -> Iterator[list[Forecast]]:
        """Ways with so many processes: those that are alike otherwise, that differ in one thing, in two, in three."""
        own = self.setting
        modes = [each for each in Mode if each is not Mode.plain]
        sharding = [own.sharding] if processes == 1 else list(Sharding)
        ways = [
            replace(own, processes=processes, mode=mode, checkpointing=checkpointing, sharding=shared)
            for mode in modes
            for checkpointing in (False, True)
            for shared in sharding
        ]
        for changes in range(4):
            yield [replace(self, setting=way) for way in ways if _distance(own, way) == changes]


def _doublings(n: int) -> list[int]:
    found = [n]
    while 2 * found[-1] <= MOST_PROCESSES:
        found.append(2 * found[-1])
    return found


def _distance(one: Setting, other: Setting) -> int:
    pairs = ((one.mode, other.mode), (one.checkpointing, other.checkpointing), (one.sharding, other.sharding))
    return sum(a is not b for a, b in pairs)
