"""What a use is, per torch function. Importing this package registers every rule."""

from tacit.rules import (
    attention,
    bilinear,
    conv,
    conv_transpose,
    einsum,
    elementwise,
    embedding,
    embedding_bag,
    experts,
    linear,
    normalization,
    recurrent,
)
from tacit.rules.broadcast import per_sample_copies
from tacit.rules.contact import Contact, Slot
from tacit.rules.normalization import refuse_batch_statistics
from tacit.rules.register import register_rule, visible
from tacit.rules.registry import find_rule, is_always_rewritten, rule_for

__all__ = [
    "Contact",
    "Slot",
    "attention",
    "bilinear",
    "conv",
    "conv_transpose",
    "einsum",
    "elementwise",
    "embedding",
    "embedding_bag",
    "experts",
    "find_rule",
    "is_always_rewritten",
    "linear",
    "normalization",
    "per_sample_copies",
    "recurrent",
    "refuse_batch_statistics",
    "register_rule",
    "rule_for",
    "visible",
]
