"""The dry run: which models can be planned, and what is said of the others."""

import pytest
import torch
from tests.scaling.small import of_module, surveyed
from torch import nn

from tacit.errors import ConfigurationError, LayoutError, MixingError
from tacit.scaling.survey import survey
from tacit.uses import Outer


def test_nothing_is_left_behind():
    model = nn.Linear(6, 5)
    found = of_module(model, 3, 6)
    assert "forward" not in model.__dict__
    assert model.weight.grad is None
    assert (found.samples, found.trained, found.itemsize) == (3, 35, 4)
    assert not found.in_blocks("weight")


def test_products_are_there_as_their_factors():
    found = of_module(nn.Linear(60, 50), 3, 4, 60)
    (use,) = (use for name, use in found.uses if name == "weight")
    assert isinstance(use, Outer)
    assert (use.a.shape, use.g.shape) == ((3, 4, 60), (3, 4, 50))
    assert use.product[:4] == (3, 4, 60, 50)


def test_every_parameter_is_seen():
    for name in ("llama", "gpt2", "equal"):
        found = surveyed(name)
        assert {parameter for parameter, _ in found.uses} == set(found.parameters)
    assert sum(name == "transformer.wte.weight" for name, _ in surveyed("gpt2").uses) == 2  # tied


def test_what_mixes_samples_is_refused_as_in_training():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x - x.mean(0))

    with pytest.raises((LayoutError, MixingError)):
        of_module(Mixing(), 3, 4)


def test_writes_into_constants_are_no_writes_into_the_model():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 4)

        def forward(self, x):
            kept = torch.zeros((len(x), 5), device=x.device)
            kept.copy_(self.first(x))
            return self.last(kept)

    assert len(of_module(Writing(), 3, 4).uses) == 4


def test_a_look_at_values_is_refused_in_words():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else self.linear(-x)

    with pytest.raises(ConfigurationError, match=r"looks at values.*engine\.explain\(\)"):
        of_module(Looking(), 3, 4)


def test_nothing_to_train():
    with pytest.raises(ConfigurationError, match="no trainable parameters"):
        of_module(nn.Linear(4, 4).requires_grad_(False), 3, 4)
    model = nn.Linear(4, 4, device="meta")
    with pytest.raises(ConfigurationError, match="met no trainable parameter"):
        survey(model, lambda _: torch.zeros((), device="meta"))
