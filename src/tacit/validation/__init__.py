"""Static checks before a model is made private."""

from tacit.validation.attachable import check_attachable

__all__ = ["check_attachable"]
