"""What a user imports, and what importing costs."""

import subprocess
import sys

import pytest

import tacit


def test_exports():
    for name in tacit.__all__:
        assert getattr(tacit, name) is not None
    assert set(tacit.__all__) <= set(dir(tacit))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tacit.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import tacit", "torch"),
        ("import tacit.accounting", "torch"),
        ("import tacit.accounting", "dp_accounting"),
        ("import tacit.cli", "torch"),
        ("from tacit import PrivacyEngine", "dp_accounting"),
        ("from tacit import PrivacyEngine", "scipy"),
        ("from tacit import PrivacyEngine", "matplotlib"),
    ],
)
def test_imports_are_lazy(statement, absent):
    code = f"{statement}\nimport sys\nsys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
