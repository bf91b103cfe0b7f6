"""What a use is, per torch function. Importing this package registers every rule."""

from tacit.rules import conv, elementwise, embedding, linear, normalization
from tacit.rules.contact import Contact, Slot
from tacit.rules.normalization import refuse_batch_statistics
from tacit.rules.registry import find_rule, rule_for

__all__ = [
    "Contact",
    "Slot",
    "conv",
    "elementwise",
    "embedding",
    "find_rule",
    "linear",
    "normalization",
    "refuse_batch_statistics",
    "rule_for",
]
