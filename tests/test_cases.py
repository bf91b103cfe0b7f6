"""docs/cases.md is complete and true: every case has a test, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "cases.md").read_text()
SECTIONS = {"Exact": 22, "Sensitivity, always": 15, "Refused": 13, "Numbers": 16}


def rows(section: str) -> list[tuple[str, list[str]]]:
    body = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    return [(title, re.findall(r"`([^`]+)`", shown)) for title, shown in cells[1:]]


@pytest.mark.parametrize("section", SECTIONS)
def test_no_case_is_missing(section: str) -> None:
    found = rows(section)
    assert len(found) == SECTIONS[section]
    assert len({title for title, _ in found}) == len(found)
    assert all(shown for _, shown in found)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_named_test_exists(section: str) -> None:
    for title, shown in rows(section):
        for name in shown:
            path, *parts = name.split("::")
            body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
            for part in parts:
                nodes = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part]
                assert nodes, (title, name)
                body = nodes[0].body
            assert parts, (title, name)
            assert parts[-1].startswith("test_"), (title, name)
