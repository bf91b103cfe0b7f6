"""Private mechanisms: the only source of noise."""

from tacit.mechanisms.fused import maker
from tacit.mechanisms.gaussian import add_gaussian_noise
from tacit.mechanisms.moving import Move
from tacit.mechanisms.noise import NoiseSource

__all__ = ["Move", "NoiseSource", "add_gaussian_noise", "maker"]
