"""Train PyTorch models with differential privacy.

``PrivacyEngine`` makes a model, an optimizer and a loader private; ``BatchMemoryManager`` splits large batches;
``tacit.accounting`` answers questions about epsilon without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tacit.engine import PrivacyEngine
    from tacit.errors import CoupledLossWarning, FallbackWarning, PrivacyError, TacitError
    from tacit.ledger import Ledger
    from tacit.rules import register_rule, visible
    from tacit.sampling import BatchMemoryManager

__version__ = "0.1.0"

_HOMES = {
    "PrivacyEngine": "tacit.engine",
    "BatchMemoryManager": "tacit.sampling",
    "Ledger": "tacit.ledger",
    "TacitError": "tacit.errors",
    "PrivacyError": "tacit.errors",
    "CoupledLossWarning": "tacit.errors",
    "FallbackWarning": "tacit.errors",
    "register_rule": "tacit.rules",
    "visible": "tacit.rules",
}

__all__ = [
    "BatchMemoryManager",
    "CoupledLossWarning",
    "FallbackWarning",
    "Ledger",
    "PrivacyEngine",
    "PrivacyError",
    "TacitError",
    "__version__",
    "register_rule",
    "visible",
]


def __getattr__(name: str) -> Any:
    # The command line asks for epsilon only, and must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'tacit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
