"""Recurrent layers on packed sequences. The loop packs each sample alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LAYERS = [nn.LSTM, nn.GRU, nn.RNN]
LENGTHS = {"equal": [4, 4, 4], "sorted": [5, 3, 1], "unsorted": [2, 5, 3], "square": [1, 4, 2, 4], "alone": [3]}


class Packed(nn.Module):
    """A classifier on padded ids and their lengths: outputs and last states are both read."""

    def __init__(self, layer: Any, *, pooled: bool = True, sort: bool = False, **settings: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.rnn = layer(4, 4, batch_first=True, **settings)
        width = self.rnn.proj_size or 4
        self.head = nn.Linear(width * (2 if self.rnn.bidirectional else 1), 3)
        self.last = nn.Linear(4 if not self.rnn.proj_size else self.rnn.proj_size, 3)
        self.pooled, self.sort = pooled, sort

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=self.sort)
        out, last = self.rnn(packed)
        last = last[0] if isinstance(last, tuple) else last
        y, _ = pad_packed_sequence(out, batch_first=True, total_length=ids.shape[1])
        return self.head(y).sum(1) + self.last(last[-1]) * last.sum((0, 2))[:, None]


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "two, both ways"])
def test_unsorted(exact: Any, layer: Any, settings: Any, name: str) -> None:
    lengths = torch.tensor(LENGTHS[name])
    exact(Packed(layer, **settings), torch.randint(0, 7, (len(lengths), 5)), lengths)


@pytest.mark.parametrize("layer", LAYERS)
def test_sorted_by_the_user(exact: Any, layer: Any) -> None:
    exact(Packed(layer, sort=True), torch.randint(0, 7, (3, 5)), torch.tensor([5, 3, 1]))


def test_projections_and_no_bias(exact: Any) -> None:
    ids, lengths = torch.randint(0, 7, (4, 5)), torch.tensor([2, 5, 3, 5])
    exact(Packed(nn.LSTM, proj_size=3, bidirectional=True), ids, lengths)
    exact(Packed(nn.GRU, bias=False), ids, lengths)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_on_packed_data_itself(exact: Any, layer: Any) -> None:
    """A linear layer and a table directly on the packed rows, before and after."""

    class Net(Packed):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(ids[..., None].double(), lengths, batch_first=True, enforce_sorted=False)
            rows = self.embedding(packed.data.long().squeeze(-1)).tanh()
            out, _ = self.rnn(packed._replace(data=rows))
            out = out._replace(data=self.head(out.data))
            return pad_packed_sequence(out, batch_first=True, total_length=ids.shape[1])[0].sum(1)

    exact(Net(layer), torch.randint(0, 7, (4, 5)), torch.tensor([2, 5, 3, 5]))


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "all"])
def test_frozen_parts(exact: Any, frozen: str) -> None:
    model = Packed(nn.LSTM)
    for name, parameter in model.rnn.named_parameters():
        parameter.requires_grad_(frozen not in (name, "all"))
    exact(model, torch.randint(0, 7, (3, 5)), torch.tensor([2, 5, 3]))
