"""Seeing every use of every parameter in unmodified models, and handing clipped sums back to autograd."""

from tacit.capture.passes import ClippedSums, Pass, Term
from tacit.capture.session import Session

__all__ = ["ClippedSums", "Pass", "Session", "Term"]
