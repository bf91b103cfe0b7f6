"""Products with parameters in every place."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tacit.errors import MixingError, PrivacyError

# (B, T, d) with four heads where there are any
EQUATIONS = {
    "btd,dp->btp": (4, 3),
    "btd,pd->btp": (3, 4),
    "dp,btd->bpt": (4, 3),
    "btd,td->bt": (4, 4),
    "btd,btd,dp->bp": (4, 3),
    "btd,d->bt": (4,),
    "btd,t->bd": (4,),
    "btd,tdp->bp": (4, 4, 3),
    "btd,tpd->btp": (4, 3, 4),
    "btd,->btd": (),
    "btd,p->bptd": (3,),
    "btd,dhe->bhte": (4, 2, 3),
    "btd,hed->tbhe": (2, 3, 4),
    "bhd,hde->bhe": (4, 4, 3),
    "bhd,hed->ehb": (4, 3, 4),
    "bdd,dp->bp": (4, 3),
    "btd,dd->bt": (4, 4),
    "...d,dp->...p": (4, 3),
    "b...,...->b...": (4, 4),
    "btd,dp": (4, 3),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("B", [1, 3, 4])
def test_one_parameter(exact: Any, equation: str, B: int) -> None:
    left = equation.partition("->")[0].split(",")
    parameter = len(left) - 1 if equation != "dp,btd->bpt" else 0

    def apply(x: Any, w: Any) -> Any:
        operands = [x] * len(left)
        operands[parameter] = w
        out = torch.einsum(equation, *operands)
        batch = equation.partition("->")[2].replace("...", "").find("b")
        return out.movedim(batch, 0) if batch > 0 else out

    exact.op(apply, torch.randn(B, 4, 4), w=EQUATIONS[equation])


def test_several_parameters(exact: Any) -> None:
    exact.op(lambda x, u, v: torch.einsum("btd,de,ef->btf", x, u, v), torch.randn(3, 5, 4), u=(4, 2), v=(2, 3))
    exact.op(lambda x, w: torch.einsum("btd,de,ef->btf", x, w, w), torch.randn(4, 4, 4), w=(4, 4))
    exact.op(lambda x, w: torch.einsum("bt,de->btde", x, w), torch.randn(4, 4), w=(4, 4))
    exact.op(lambda x, w: torch.einsum("btd,de->bte", [x, w * 2]), torch.randn(3, 4, 4), w=(4, 4))


def test_rows_folded_with_time(exact: Any) -> None:
    def apply(x: Any, w: Any) -> Any:
        return torch.einsum("nd,de,nf->nef", x.flatten(0, 1), w, x.flatten(0, 1)).view(*x.shape[:2], 3, 4)

    for B, T in ((3, 5), (4, 4), (1, 3)):
        exact.op(apply, torch.randn(B, T, 4), w=(4, 3))
    exact.op(lambda x, w: torch.einsum("tbd,dh,tbd->tbh", x, w, x), torch.randn(4, 3, 4), batch_first=False, w=(4, 3))


def test_a_size_of_one_that_broadcasts(exact: Any) -> None:
    exact.op(lambda x, w: torch.einsum("btd,td->bt", x, w), torch.randn(3, 5, 4), w=(1, 4))


@pytest.mark.parametrize("equation", ["btd,dp->tp", "btd,bp->btp"])
def test_what_mixes_samples(exact_auto: Any, equation: str) -> None:
    error = MixingError if "dp" in equation else PrivacyError
    with pytest.raises(error, match="einsum"):
        exact_auto.private(lambda x, w: x + torch.einsum(equation, x, w).sum(), torch.randn(4, 4, 4), w=(4, 4))


PLACES = {
    "vector @ matrices": (lambda x, w: w @ x, (4,)),
    "heads @ matrices": (lambda x, w: w @ x[:, None], (3, 4, 4)),
    "inner": (lambda x, w: torch.inner(x, w), (3, 4)),
    "inner with a vector": (lambda x, w: x.inner(w), (4,)),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 1), (4, 3)),
    "tensordot of two dimensions": (lambda x, w: torch.tensordot(x, w, ([1, 2], [1, 0])), (4, 4, 3)),
    "outer": (lambda x, w: torch.outer(x[:, 0, 0], w), (4,)),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x, w.expand_as(x), beta=0.5, alpha=2), (4, 4)),
    "added parameter": (lambda x, w: torch.baddbmm(w, x, x), (4, 4)),
    "addmv": (lambda x, w: torch.addmv(x[:, 0, 1], x[:, 0], w), (4,)),
    "cdist": (lambda x, w: torch.cdist(x, w), (3, 4)),
    "cdist of rows": (lambda x, w: torch.cdist(x[:, 0], w), (3, 4)),
    "cdist from the left": (lambda x, w: torch.cdist(w, x[:, 0]).t(), (3, 4)),
    "cosine": (lambda x, w: F.cosine_similarity(x, w, dim=-1), (4,)),
    "cosine of pairs": (lambda x, w: F.cosine_similarity(x[:, :, None], w, dim=-1), (3, 4)),
    "pairwise": (lambda x, w: F.pairwise_distance(x, w), (4, 4)),
    "packed projections": (lambda x, w: torch.stack([F.linear(x, part) for part in w.chunk(3)]).sum(0), (12, 4)),
    "narrowed and reshaped": (lambda x, w: x @ w.narrow(0, 2, 4).view(2, 2, 4).flatten(0, 1), (9, 4)),
    "reshaped": (lambda x, w: F.linear(x, w.view(3, 4)) + x.sum(-1, keepdim=True) * w[:3], (12,)),
    "one slice twice": (lambda x, w: F.linear(F.linear(x, w[:4]), w[2:6]), (7, 4)),
}


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("name", PLACES)
def test_other_products(exact: Any, name: str, B: int) -> None:
    function, shape = PLACES[name]
    exact.op(function, torch.randn(B, 4, 4), w=shape)


@pytest.mark.parametrize("B", [1, 3, 4])
def test_tables_read_by_two_ids(exact: Any, B: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.rows = nn.Parameter(torch.randn(4, 5, 3)), nn.Parameter(torch.randn(6, 2, 3))

        def forward(self, x: Any, i: Any, j: Any) -> Any:
            picked = self.table[i, j] + self.table[i, -1 - j]
            return x * (picked + torch.index_select(self.rows, 0, i[:, 0]).sum(1)[:, None])

    exact(Net(), torch.randn(B, 4, 3), torch.randint(0, 4, (B, 4)), torch.randint(0, 5, (B, 4)))
