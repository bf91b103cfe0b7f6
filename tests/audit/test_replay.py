"""Record and replay: with all releases frozen, one record more changes nothing that anyone can see.

A run on D is recorded. It is replayed on D and a record x, which joins some of the batches, with the recorded releases
in the place of new ones. How many steps there are, with what noise and divisor, of which shapes, and every line that
runs from the step to the update must then be the same: what depends on x, depends on it through the releases alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tacit.step
from tacit import PrivacyEngine
from tacit.mechanisms import add_gaussian_noise
from tacit.sampling import PoissonSampling, Sampling, TruncatedPoissonSampling

RECORDS, STEPS, EPOCHS = 12, 4, 3
WATCHED = ("optimizer.py", "accountants.py", "gaussian.py", "secure.py", "noise.py", "draws.py")


class Lines:
    """The lines of the engine that run in a step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> Any:
        name = Path(frame.f_code.co_filename)
        releaser = name.name == "step.py" and frame.f_code.co_qualname.startswith("Releaser.")
        if "tacit" not in name.parts or not (releaser or name.name in WATCHED):
            return self
        if event == "line":
            self.seen.append((name.name, frame.f_lineno))
        return self


def draws_of(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    joins = torch.rand(STEPS * EPOCHS, RECORDS, generator=generator) < 1 / STEPS
    joins[1] = False  # an empty batch is a release like any other
    return [row.nonzero().flatten().tolist() for row in joins]


def train(
    monkeypatch: pytest.MonkeyPatch,
    extra: torch.Tensor | None,
    frozen: list[torch.Tensor] | None,
    noise: float,
    padded: bool = False,
) -> tuple[list[torch.Tensor], list[tuple[Any, ...]], list[tuple[str, int]], list[torch.Tensor]]:
    """Return the releases, what is public of each, the lines that ran, and the weights after each step."""
    torch.manual_seed(0)
    x, y = torch.randn(RECORDS, 3), torch.randint(0, 2, (RECORDS,))
    batches = draws_of(1)
    if extra is not None:
        x, y = torch.cat([x, extra[None]]), torch.cat([y, y[:1]])
        batches = [[*batch, RECORDS] if i % 3 != 2 else batch for i, batch in enumerate(batches)]
    drawn = iter(batches)

    def next_epoch(self: Sampling, generator: torch.Generator) -> Iterator[list[int]]:
        for _ in range(self.steps_per_epoch):
            yield next(drawn)

    releases: list[torch.Tensor] = []
    public: list[tuple[Any, ...]] = []
    waiting = iter(frozen or ())

    def release(totals: list[torch.Tensor], *, std: float, divisor: float, **rest: Any) -> list[torch.Tensor]:
        public.extend((tuple(total.shape), total.dtype, std, divisor) for total in totals)
        made = add_gaussian_noise(totals, std=std, divisor=divisor, **rest)
        releases.extend(one.clone() for one in made)
        return made if frozen is None else [next(waiting).clone() for _ in made]

    monkeypatch.setattr(PoissonSampling, "batches", next_epoch)
    monkeypatch.setattr(TruncatedPoissonSampling, "batches", next_epoch)
    monkeypatch.setattr(tacit.step, "add_gaussian_noise", release)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    size = -(-len(x) // STEPS)
    private, optimizer, loader = PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=size),
        noise_multiplier=noise,
        max_grad_norm=1.0,
        sampling=TruncatedPoissonSampling(len(x), 1 / STEPS, STEPS, RECORDS) if padded else None,
        loss_reduction="sum",  # a mean divides by the number of records, which counts as public
    )
    lines, weights = Lines(), []
    for _ in range(EPOCHS):
        for records, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(records), labels, reduction="sum").backward()
            before = sys.gettrace()
            sys.settrace(lines)
            try:
                optimizer.step()
            finally:
                sys.settrace(before)
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return releases, public, lines.seen, weights


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize(
    "extra",
    [torch.tensor([0.1, -0.2, 0.3]), torch.tensor([1e20, -1e20, 1e20]), torch.full((3,), float("nan"))],
    ids=["ordinary", "wild", "nan"],
)
def test_one_record_more_changes_nothing_but_the_releases(
    monkeypatch: pytest.MonkeyPatch, extra: torch.Tensor, noise: float, padded: bool
) -> None:
    releases, public, lines, weights = train(monkeypatch, None, None, noise, padded)
    others, other_public, other_lines, other_weights = train(monkeypatch, extra, releases, noise, padded)
    assert len(releases) == len(others) == 4 * STEPS * EPOCHS
    assert public == other_public
    assert lines == other_lines
    assert len(lines) > 20 * STEPS * EPOCHS
    for one, other in zip(weights, other_weights, strict=True):
        assert torch.equal(one, other)
    moved = any(not torch.equal(one, other) for one, other in zip(releases, others, strict=True))
    assert moved or bool(torch.isnan(extra).any())
