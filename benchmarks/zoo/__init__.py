"""Models, small and with random weights: what tests and the table of models train."""

from benchmarks.zoo.adapters import ADAPTERS
from benchmarks.zoo.brought import BROUGHT
from benchmarks.zoo.entry import WAYS, Entry, Way, ways_of
from benchmarks.zoo.hugging_face import HUGGING_FACE

MODELS: dict[str, Entry] = HUGGING_FACE | ADAPTERS | BROUGHT

__all__ = ["ADAPTERS", "BROUGHT", "HUGGING_FACE", "MODELS", "WAYS", "Entry", "Way", "ways_of"]
