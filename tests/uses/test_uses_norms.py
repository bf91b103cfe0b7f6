"""Norms of which questions are asked together: what was in doubt is computed again, as if each had asked for itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tacit.uses import Dense, Gather, Geometry, Norms, Outer, Patches, Routed, TableAndHead, Use, norms

B, T = 4, 6
LIMIT = 1.0


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def cancelling(*shape: int) -> Tensor:
    """Rows of which those of one sample add up to almost nothing."""
    values = random(*shape)
    values[1, shape[1] // 2 :] = -values[1, : shape[1] // 2] * (1 + 1e-6)
    return values


def repeated(*shape: int) -> Tensor:
    values = random(*shape)
    values[1] = values[1, :1]
    return values


def ids() -> Tensor:
    chosen = torch.arange(B * T).view(B, T) % 5
    chosen[1] = 2
    return chosen


def outer(**settings: bool) -> Outer:
    return Outer(repeated(B, T, 5), cancelling(B, T, 7), torch.Size((7, 5)), **settings)


def head(a: Tensor, g: Tensor) -> TableAndHead:
    return TableAndHead(Gather(ids(), cancelling(B, T, 5), 8), Outer(a, g, torch.Size((8, 5))))


def tiny() -> Tensor:
    values = random(B, 10, 1000)
    values[1] *= 1e-25
    return values


USES: dict[str, Callable[[], Use]] = {
    "gram": outer,
    "formed": lambda: outer(formed=True),
    "one row": lambda: Outer(random(B, 1, 5), random(B, 1, 7), torch.Size((7, 5))),
    "zeros": lambda: Outer(random(B, T, 5), torch.zeros(B, T, 7), torch.Size((7, 5))),
    "tiny": lambda: Dense(tiny()),
    "one row, tiny": lambda: Outer(tiny().view(B, 1, -1), random(B, 1, 2), torch.Size((2, 10000))),
    "table": lambda: Gather(ids(), cancelling(B, T, 5), 8),
    "table and head": lambda: head(random(B, T, 5), random(B, T, 8)),
    "table and head that cancels": lambda: head(repeated(B, T, 5), cancelling(B, T, 8)),
    "patches": lambda: Patches(
        random(B, 2, 5, 5) * torch.tensor([1.0, 1e-20, 1.0, 1.0]).view(B, 1, 1, 1),
        random(B, 3, 3, 3),
        torch.Size((3, 2, 3, 3)),
        Geometry((1, 1), (0, 0), (1, 1), 1),
        way="pixels",
    ),
    "experts": lambda: Routed(repeated(B, T, 5), cancelling(B, T, 7), torch.zeros(B, T, dtype=torch.int64), 2),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each time; the CPU is asked as a GPU is."""
    counts: list[int] = []
    answers = norms.answers

    def count(questions: list[Tensor]) -> list[bool]:
        counts.append(len(questions))
        return answers(questions)

    monkeypatch.setattr(norms, "answers_at_once", lambda _: False)
    monkeypatch.setattr(norms, "answers", count)
    return counts


@pytest.mark.parametrize("factor", [1.0, 1e5])
@pytest.mark.parametrize("name", USES)
def test_as_if_each_had_asked_for_itself(asked: list[int], name: str, factor: float) -> None:
    factors = torch.full((B,), factor, dtype=torch.float64)
    due, plain = USES[name](), USES["gram"]()
    squares = due.squared_norms()
    plain_squares = plain.squared_norms()
    found = Norms({"a": USES[name](), "b": (other := USES["gram"]())})
    finite = torch.ones(B, dtype=torch.bool)
    rounds, known = 0, None
    while known is None:
        rounds += 1
        (together,) = found.squares()
        known = found.known(finite, {"a": factors, "b": factors}, LIMIT)
    assert len(asked) == rounds == 2  # there was a doubt
    assert torch.equal(together, torch.stack([squares, plain_squares]))
    assert known.finite
    total = other.weighted_sum(factors, known.limit("b", LIMIT))
    assert torch.equal(total, plain.weighted_sum(factors, LIMIT))
    use = found._others["a"]
    assert torch.equal(use.weighted_sum(factors, known.limit("a", LIMIT)), due.weighted_sum(factors, LIMIT))


def test_one_question_for_all_where_nothing_is_in_doubt(asked: list[int]) -> None:
    uses: dict[str, Use] = {str(n): Outer(random(B, T, 5), random(B, T, 7), torch.Size((7, 5))) for n in range(3)}
    uses["table"] = Gather(ids(), random(B, T, 5), 8)
    found = Norms(uses)
    finite = torch.tensor([True, False, True, True])
    known = found.known(finite, dict.fromkeys(uses, torch.ones(B, dtype=torch.float64)), 1e3)
    assert known == (False, frozenset())
    assert [known.limit(name, 1e3) for name in uses] == [None] * 4
    assert len(asked) == 1


def test_sums_that_must_look_for_themselves_are_told(asked: list[int]) -> None:
    uses: dict[str, Use] = {name: Outer(random(B, T, 5), random(B, T, 7), torch.Size((7, 5))) for name in "ab"}
    factors = {"a": torch.full((B,), 1e-6, dtype=torch.float64), "b": torch.full((B,), 1e6, dtype=torch.float64)}
    known = Norms(uses).known(torch.ones(B, dtype=torch.bool), factors, LIMIT)
    assert known == (True, frozenset("b"))
    assert (known.limit("a", LIMIT), known.limit("b", LIMIT)) == (None, LIMIT)
    assert len(asked) == 1


def test_a_cpu_is_asked_at_once() -> None:
    uses: dict[str, Use] = {"a": outer()}
    found = Norms(uses)
    assert torch.equal(found.squares()[0][0], outer().squared_norms())
    known = found.known(torch.ones(B, dtype=torch.bool), {"a": torch.ones(B, dtype=torch.float64)}, LIMIT)
    assert known == (True, frozenset("a"))  # its sum looks for itself
