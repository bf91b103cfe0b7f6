"""Writing in place: what other tensors that share the memory are known for must still hold."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import PrivacyError
from tacit.testing import check_exactness

SIZE = 4
"""As many samples as features: shapes tell nothing."""


class Writes(nn.Module):
    """Between two layers, ``how(h, x, constant)`` writes into the first one's output or into a constant."""

    def __init__(self, how, shape):
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3)
        self.how, self.shape = how, shape

    def forward(self, x):
        h, constant = self.first(x) * 1, x.new_zeros(self.shape(len(x)))
        self.how(h, x, constant)
        dims = [dim for dim, size in enumerate(self.shape(0)) if size == 3]
        return self.second(h + (constant.sum(dims) if dims else constant))


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


OVER_OTHERS = {
    "a view": lambda h, x, _: h.t().add_(x),
    "a detached view": lambda h, x, _: h.detach().t().add_(x),
    "detached": lambda h, x, _: h.detach().add_(x.t()),
    "data": lambda h, x, _: h.data.cumsum_(0),
    "items of a view": lambda h, x, _: h.t().__setitem__(slice(None), x),
    "the next rows": lambda h, x, _: h[1:].add_(x[:-1]),
    "rows that add up": lambda h, x, _: h[1:].cumsum_(0),
    "view of a constant": lambda _, x, constant: constant.t().add_(x),
    "view of a constant, out": lambda _, x, constant: torch.mul(x, 2, out=constant.t()),
    "items of a view of a constant": lambda _, x, constant: constant.t().__setitem__(slice(None), x),
}


def stale(write, read):
    """Reads a view of a constant that was made before the batch was written into that."""

    def how(h, x, constant):
        view = constant.t()
        write(constant, view, x)
        h.add_(read(view))

    return how


OVER_OTHERS |= {
    "view from before": stale(lambda z, _, x: z.add_(x), lambda v: v),
    "view of a view from before": stale(lambda z, _, x: z.add_(x), lambda v: v[:, :2].repeat(1, 2)),
    "two views": stale(lambda z, _, x: z[:].add_(x), lambda v: 2 * v),
    "view from before, detached": stale(lambda z, _, x: z.copy_(x), lambda v: v.detach()),
    "view from before, written into": stale(lambda z, v, x: z.add_(x) + v.add_(x), lambda v: v),
    "items from before": stale(lambda z, _, x: z.__setitem__(slice(None), x), lambda v: v.relu()),
}


@pytest.mark.parametrize("how", OVER_OTHERS.values(), ids=OVER_OTHERS)
@pytest.mark.filterwarnings("ignore::tacit.errors.FallbackWarning")
def test_samples_are_not_written_over_others_under_another_name(how):
    model = Writes(how, lambda rows: (rows, SIZE))
    data = TensorDataset(torch.randn(SIZE, SIZE), torch.randint(0, 3, (SIZE,)))
    model, _, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=SIZE),
        sampling="full-batch",
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    with pytest.raises(PrivacyError):
        loss_of(model, next(iter(loader)))


OWN_ROWS = {
    "own numbers of some": (lambda h, *_: h[:, 1:].mul_(2), lambda rows: (rows, SIZE)),
    "a view": (lambda h, x, _: h.t().mul_(2).add_(x.t()), lambda rows: (rows, SIZE)),
    "other features of its own": (lambda h, *_: h[:, 1:].add_(h[:, :-1].clone()), lambda rows: (rows, SIZE)),
    "steps before the batch": (lambda h, _, constant: constant[1].copy_(h), lambda rows: (3, rows, SIZE)),
    "views from before": (
        lambda _, x, constant: [one.copy_(x / 8) for one in [constant[step] for step in range(3)]],
        lambda rows: (3, rows, SIZE),
    ),
    "steps behind the batch": (lambda h, _, constant: constant[:, 2].copy_(h), lambda rows: (rows, 3, SIZE)),
}


@pytest.mark.parametrize(("how", "shape"), OWN_ROWS.values(), ids=OWN_ROWS)
def test_what_is_written_into_its_own_rows_is_clipped_as_by_the_loop(how, shape):
    torch.manual_seed(0)
    check_exactness(Writes(how, shape), loss_of, (torch.randn(SIZE, SIZE), torch.randint(0, 3, (SIZE,))))
