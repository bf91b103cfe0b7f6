"""All cases by name, and in groups: those of the table in the documentation, and longer ones."""

from __future__ import annotations

from benchmarks.cases import CASES, Case
from benchmarks.long_cases import LONG_CASES

GROUPS: dict[str, tuple[Case, ...]] = {"standard": CASES, "long": LONG_CASES}
QUICK = ("encoder", "convnet", "mlp", "gpt2")
BY_NAME = {case.name: case for group in GROUPS.values() for case in group}
