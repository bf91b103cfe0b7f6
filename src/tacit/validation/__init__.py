"""Static checks before a model is made private, and a compatible copy of it."""

from tacit.validation.attachable import check_attachable
from tacit.validation.compiled import is_compiled_wrapper, plain_module, renew_compiled_wrappers
from tacit.validation.convert import Change, Conversion, FrozenBatchNorm, compatible
from tacit.validation.issues import Issue, find_issues, loader_issues, raise_all

__all__ = [
    "Change",
    "Conversion",
    "FrozenBatchNorm",
    "Issue",
    "check_attachable",
    "compatible",
    "find_issues",
    "is_compiled_wrapper",
    "loader_issues",
    "plain_module",
    "raise_all",
    "renew_compiled_wrappers",
]
