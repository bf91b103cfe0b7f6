"""Walls that the import linter cannot see."""

from pathlib import Path

import tacit

SOURCE = Path(tacit.__file__).parent


def test_only_distributed_touches_torch_distributed():
    users = {p.relative_to(SOURCE).parts[0] for p in SOURCE.rglob("*.py") if "torch.distributed" in p.read_text()}
    assert users == {"distributed"}


def test_every_documented_file_is_there_and_every_file_is_documented():
    picture = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    for path in [*SOURCE.glob("*.py"), *(p for p in SOURCE.iterdir() if (p / "__init__.py").exists())]:
        name = path.name if path.suffix else f"{path.name}/"
        assert name in picture, name
