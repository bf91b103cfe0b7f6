"""Seeing every use of every parameter in unmodified models, and handing clipped sums back to autograd."""

from tacit.capture.averaged import AveragedGuard
from tacit.capture.fingerprints import looked_at
from tacit.capture.guard import LeakGuard
from tacit.capture.passes import Clip, ClippedSums, Deposit, EarlyClip, Pass, Term
from tacit.capture.session import Session
from tacit.capture.sharded import ShardedGuard
from tacit.capture.units import check_index, read_field

__all__ = [
    "AveragedGuard",
    "Clip",
    "ClippedSums",
    "Deposit",
    "EarlyClip",
    "LeakGuard",
    "Pass",
    "Session",
    "ShardedGuard",
    "Term",
    "check_index",
    "looked_at",
    "read_field",
]
