"""Private forwards under torch.compile: one graph for the forward and one for the backward."""

from tacit.capture.compiled.region import Regions

__all__ = ["Regions"]
