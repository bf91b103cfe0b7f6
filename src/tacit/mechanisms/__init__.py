"""Private mechanisms: the only source of noise."""

from tacit.mechanisms.fused import maker
from tacit.mechanisms.gaussian import add_gaussian_noise
from tacit.mechanisms.noise import NoiseSource

__all__ = ["NoiseSource", "add_gaussian_noise", "maker"]
