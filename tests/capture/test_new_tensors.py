"""Tensors that are made of the batch's numbers are the batch's, whatever makes them."""

import pytest
import torch
from torch import nn

from tacit.errors import PrivacyError
from tacit.testing import private_gradients, single_sample_loop

B = 5


class Behind(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(3, 4, dtype=torch.float64)
        self.function = function
        self.register_buffer("kept", torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        return self.function(self, self.layer(x))


def loss(model, x):
    return model(x).square().sum()


def batch():
    return torch.randn(B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def clipped(function):
    return private_gradients(Behind(function), loss, batch(), max_grad_norm=1.0, loss_reduction="sum")


def stat(h):
    return h.detach().abs().mean(0)


def one(h):
    return h.detach().abs().mean()


MADE = {
    "new_tensor": lambda m, h: h * h.new_tensor(stat(h)),
    "new_tensor, named": lambda m, h: h * h.new_tensor(data=stat(h)),
    "new_tensor of a list": lambda m, h: h * h.new_tensor([one(h), 1.0, 1.0, one(h)]),
    "new_tensor of a constant": lambda m, h: h * m.kept.new_tensor(stat(h)),
    "new_tensor of rows": lambda m, h: h * h.new_tensor(h.detach().roll(1, 0)),
    "new_full": lambda m, h: h * h.new_full((), one(h)),
    "new_full, named": lambda m, h: h * h.new_full(size=(4,), fill_value=one(h)),
    "new_full of a constant": lambda m, h: h * m.kept.new_full((4,), one(h)),
    "new_full of a sum": lambda m, h: h * h.new_full((), h.detach().sum()),
    "new": lambda m, h: h * h.new(stat(h)),
    "new of a list": lambda m, h: h * h.new([one(h)]),
    "arange": lambda m, h: h * torch.arange(one(h), one(h) + 3.5)[:4],
    "arange, named": lambda m, h: h * torch.arange(start=one(h), end=one(h) + 3.5)[:4],
    "arange, half named": lambda m, h: h * torch.arange(one(h), end=one(h) + 3.5)[:4],
    "arange by steps": lambda m, h: h * torch.arange(0, one(h) * 3.5, one(h))[:4],
    "arange by named steps": lambda m, h: h * torch.arange(0, one(h) * 3.5, step=one(h))[:4],
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("name", MADE)
def test_numbers_of_the_batch_are_no_constants(name):
    with pytest.raises(PrivacyError):
        clipped(MADE[name])


OWN = {
    "new_zeros": lambda m, h: h + h.new_zeros(len(h), 4) + h.new_ones(4),
    "new_full": lambda m, h: h * h.new_full((len(h), 4), 2.0),
    "new_tensor": lambda m, h: h * h.new_tensor([1.0, 2.0, 3.0, 4.0]),
    "new_tensor of a constant": lambda m, h: h + h.new_tensor(m.kept),
    "new_tensor of own rows": lambda m, h: h * h.new_tensor(h.detach()),
    "new": lambda m, h: h + h.new(len(h), 4).zero_(),
    "arange": lambda m, h: h * torch.arange(h.shape[1]),
    "arange to the longest": lambda m, h: h * torch.arange((h.detach() == h.detach()).sum(1).max()),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("name", OWN)
def test_constants_and_own_numbers_stay(name):
    model = Behind(OWN[name])
    norms, sums = private_gradients(model, loss, batch(), max_grad_norm=1.0, loss_reduction="sum")
    expected = single_sample_loop(model, loss, batch(), max_grad_norm=1.0)
    torch.testing.assert_close(norms, expected.norms)
    for key, value in expected.sums.items():
        torch.testing.assert_close(sums[key], value)


def set_constant(h, *source):
    constant = torch.zeros(4, dtype=torch.float64)
    constant.set_(*source)
    return h * constant


UNSEEN = {
    "Parameter": lambda m, h: h * nn.Parameter(stat(h), requires_grad=False),
    "Parameter, named": lambda m, h: h * nn.Parameter(data=stat(h), requires_grad=False),
    "Parameter of a part": lambda m, h: h * nn.Parameter(stat(h)[1:2], requires_grad=False),
    "Parameter of one sample": lambda m, h: h * nn.Parameter(h.detach()[0], requires_grad=False),
    "Parameter with a gradient": lambda m, h: h * nn.Parameter(stat(h)),
    "Parameter of a sum": lambda m, h: h * nn.Parameter(h.detach().sum(), requires_grad=False),
    "Parameter, changed": lambda m, h: h * (nn.Parameter(stat(h), requires_grad=False) + 1),
    "subclass": lambda m, h: h * torch.Tensor._make_subclass(torch.Tensor, stat(h)),
    "legacy constructor": lambda m, h: h * torch.DoubleTensor(stat(h)),
    "set_ of a constant": lambda m, h: set_constant(h, stat(h)),
    "set_ of a buffer": lambda m, h: h * m.kept.set_(stat(h)),
    "set_ of a storage": lambda m, h: set_constant(h, stat(h).untyped_storage(), 0, (4,), (1,)),
    "set_ of numbers": lambda m, h: h * torch.zeros(4, dtype=torch.int64).set_(h.argmax(0)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_nor_are_tensors_in_the_memory_of_statistics(name):
    with pytest.raises(PrivacyError):
        clipped(UNSEEN[name])


def test_constants_of_which_the_batch_picks_a_view_stay():
    norms, _ = clipped(lambda m, h: (m.kept[(h.detach().mean() > 9).long()], h + m.kept)[1])
    assert bool((norms > 0).all())
