"""Does the cost model rank the forms of a matrix product as the clock does? On shapes drawn at random."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks import records
from benchmarks.table import digits
from tacit.uses import TUNER, Product, costs_of, product_key, time_product

REPEATS = 5
CLOSE = 1.1
"""Forms whose times differ by less are as good as each other: which comes first is chance."""

_SIZES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_LARGEST = 2**26
"""Numbers that whole gradients, or Gram matrices, may have."""


@dataclass(frozen=True)
class Ranked:
    """One shape: milliseconds of each form, as predicted and as measured."""

    product: Product
    predicted: dict[str, float]
    measured: dict[str, float]

    @property
    def chosen(self) -> str:
        return min(self.predicted, key=self.predicted.__getitem__)

    @property
    def lost(self) -> float:
        """The chosen form's time over the quickest one's."""
        return self.measured[self.chosen] / min(self.measured.values())


def drawn(count: int, seed: int) -> list[Product]:
    """Shapes as of layers, none of them among the benchmarks' own on purpose."""
    source, found = random.Random(seed), list[Product]()
    while len(found) < count:
        product = Product(source.randint(2, 32), source.randint(2, 512), source.choice(_SIZES), source.choice(_SIZES))
        grams = product.samples * product.positions**2
        if max(product.whole // product.itemsize, grams) <= _LARGEST:
            found.append(product)
    return found


def rank(product: Product, repeats: int = REPEATS) -> Ranked:
    device, dtype = torch.device("cpu"), torch.float32
    predicted = {name: 1e3 * seconds for name, seconds in costs_of(device, dtype).seconds(product).items()}
    tries = []
    for _ in range(repeats):
        TUNER.found.pop(product_key(product, device, dtype), None)
        tries.append(dict(time_product(product, device, dtype)))
    return Ranked(product, predicted, {name: min(each[name] for each in tries) for name in predicted})


def summary(found: Sequence[Ranked]) -> str:
    same = sum(one.lost == 1.0 for one in found) / len(found)
    close = sum(one.lost < CLOSE for one in found) / len(found)
    whole = sum(one.measured[one.chosen] for one in found) / sum(min(one.measured.values()) for one in found)
    return (
        f"Of {len(found)} shapes the form that is predicted to be the quickest is so on {same:.0%}, and is within "
        f"{CLOSE - 1:.0%} of it on {close:.0%}. All chosen forms together take {whole:.3f} times the best ones."
    )


def table(found: Sequence[Ranked]) -> str:
    head = "| B, T, d, p | Gram: predicted, measured, ms | whole: predicted, measured, ms | chosen / best |"
    lines = [head, "|---|---:|---:|---:|"]
    for one in found:
        sizes = ", ".join(str(size) for size in one.product[:4])
        cells = [f"{digits(one.predicted[name])}, {digits(one.measured[name])}" for name in ("gram", "stored")]
        lines.append(f"| {sizes} | {' | '.join(cells)} | {one.lost:.2f} |")
    return "\n".join(lines)


def command(given: argparse.Namespace) -> int:
    surroundings = records.environment()
    path = records.new_file(given.out)
    found = [rank(product) for product in drawn(given.shapes, given.seed)]
    records.append(
        path,
        [
            {**surroundings, "sizes": list(one.product), "predicted": one.predicted, "measured": one.measured}
            for one in found
        ],
    )
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    print(table(found))
    print(f"\n{summary(found)}")
    return 0
