"""Every situation that is refused, ready to be brought about: what test_messages.py reads the words of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

from tacit import BatchMemoryManager, PrivacyEngine

RECORDS, FEATURES, CLASSES = 12, 5, 3
DATA = TensorDataset(torch.randn(RECORDS, FEATURES), torch.randint(0, CLASSES, (RECORDS,)))


class Run:
    """A private run whose every draw is the whole data set."""

    def __init__(self, model: Any = None, loader: Any = None, optimizer: Any = None, **settings: Any) -> None:
        self.model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)) if model is None else model
        self.original = torch.optim.SGD(self.model.parameters(), lr=0.1) if optimizer is None else optimizer
        self.own_loader = DataLoader(DATA, batch_size=RECORDS) if loader is None else loader
        self.engine = PrivacyEngine()
        given = {"noise_multiplier": 1.0, "max_grad_norm": 1.0} | settings
        self.private, self.optimizer, self.loader, *_ = self.engine.make_private(
            module=self.model, optimizer=self.original, data_loader=self.own_loader, **given
        )

    def loss(self, *, batch: Any = None) -> Tensor:
        x, y = next(iter(self.loader)) if batch is None else batch
        return F.cross_entropy(self.private(x), y)


class Calls(nn.Module):
    """A linear layer, and what ``function(layer, x)`` makes of it."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES) if layer is None else layer
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


def forward_of(function: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module | None = None) -> Tensor:
    run = Run(Calls(function, layer))
    return run.private(next(iter(run.loader))[0])


def with_norm(norm: nn.Module) -> Run:
    return Run(nn.Sequential(nn.Linear(FEATURES, 4), norm, nn.Linear(4, CLASSES)))


def norm_switched_on() -> None:
    norm = nn.BatchNorm1d(4).eval()
    run = with_norm(norm)
    norm.train()
    run.loss()


def outside_any_forward() -> None:
    run = Run(Calls(lambda layer, x: layer(x)))
    x, y = next(iter(run.loader))
    (run.loss(batch=(x, y)) + F.linear(x, run.model.layer.weight).square().mean()).backward()


def second_backward() -> None:
    loss = Run().loss()
    loss.backward(retain_graph=True)
    loss.backward()


def released_before() -> None:
    run = Run()
    batch = next(iter(run.loader))
    for _ in range(2):
        run.optimizer.zero_grad()
        run.loss(batch=batch).backward()
        if not run.engine.accountant.steps:
            run.optimizer.step()
    next(iter(run.loader))
    run.optimizer.step()


def original_optimizer() -> None:
    run = Run()
    run.loss().backward()
    run.original.step()


def original_loader() -> None:
    run = Run()
    run.loss(batch=next(iter(run.own_loader))).backward()
    run.optimizer.step()


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield torch.zeros(FEATURES), 0


def twice() -> None:
    run = Run()
    Run(run.model)


def left_midway() -> None:
    run = Run()
    batches = BatchMemoryManager(data_loader=run.loader, max_physical_batch_size=5, optimizer=run.optimizer)
    with batches as pieces:
        for piece in pieces:
            run.loss(batch=piece).backward()
            break


def checkpoint_behind(folder: Path) -> None:
    run = Run()
    run.engine.save_checkpoint(folder / "early.pt", module=run.private, optimizer=run.optimizer)
    run.loss().backward()
    run.optimizer.step()
    run.engine.load_checkpoint(folder / "early.pt", module=run.private, optimizer=run.optimizer)


def scaler() -> None:
    run = Run()
    run.loss().backward()
    for parameter in run.model.parameters():
        parameter.grad.mul_(0.5)  # as a GradScaler's unscale does
    run.optimizer.step()


def penalty() -> None:
    run = Run(Calls(lambda layer, x: layer(x).tanh()))
    x = next(iter(run.loader))[0].requires_grad_()
    (slope,) = torch.autograd.grad(run.private(x).sum(), x, create_graph=True)
    slope.square().sum().backward()


def nested() -> None:
    Run().private(torch.nested.nested_tensor([torch.randn(2, FEATURES), torch.randn(3, FEATURES)], layout=torch.jagged))


def mixed_loss() -> None:
    def contrastive(model: nn.Module, batch: Any) -> Tensor:
        h = F.normalize(model(batch[0]), dim=1)
        return F.cross_entropy(h @ h.T, torch.arange(len(h)))

    run = Run()
    run.engine.check(contrastive, (DATA.tensors[0], DATA.tensors[1])).raise_if_bad()


def lm(batch_of_all: bool) -> None:
    """Hugging Face's own loss, whose divisor depends on other samples."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    ids = torch.randint(0, 7, (RECORDS, 4))
    run = Run(model.train(), DataLoader(TensorDataset(ids), batch_size=RECORDS))
    (ids,) = next(iter(run.loader))
    run.private(input_ids=ids, labels=ids, **({"num_items_in_batch": 3 * RECORDS} if batch_of_all else {}))


def loaders(loader: DataLoader) -> Callable[[], Any]:
    return lambda: Run(loader=loader)


def settings(**given: Any) -> Callable[[], Any]:
    return lambda: Run(**given)


SITUATIONS: dict[str, Callable[[], Any]] = {
    "batch norm": lambda: with_norm(nn.BatchNorm1d(4)),
    "batch norm, affine=False": lambda: with_norm(nn.BatchNorm1d(4, affine=False)),
    "batch norm, frozen affine": lambda: with_norm(nn.BatchNorm1d(4).requires_grad_(False)),
    "batch norm, no running statistics": lambda: with_norm(nn.BatchNorm1d(4, track_running_stats=False)),
    "batch norm, switched on later": norm_switched_on,
    "batch norm, functional": lambda: forward_of(lambda layer, x: F.batch_norm(layer(x), None, None, training=True)),
    "a loss that mixes samples": mixed_loss,
    "a layer that mixes samples": lambda: forward_of(lambda layer, x: layer(x - x.mean(0))),
    "rows that others choose": lambda: forward_of(lambda layer, x: layer(x[x.sum(1).topk(RECORDS // 2).indices])),
    "the batch in a buffer": lambda: forward_of(
        lambda layer, x: (layer.mean.copy_(x.mean(0)), layer(x))[1], Buffered(FEATURES, CLASSES)
    ),
    "outside any forward": outside_any_forward,
    "second backward": second_backward,
    "released before": released_before,
    "the original optimizer": original_optimizer,
    "the original loader": original_loader,
    "an own sampler": loaders(DataLoader(DATA, batch_size=4, sampler=Weighted([1.0] * RECORDS, RECORDS))),
    "drop_last": loaders(DataLoader(DATA, batch_size=5, drop_last=True)),
    "a batch sampler": loaders(DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, drop_last=True))),
    "an iterable data set": loaders(DataLoader(Stream(), batch_size=4)),
    "an unknown keyword": settings(max_gradnorm=1.0),
    "a wrong type": settings(noise_multiplier="1"),
    "negative noise": settings(noise_multiplier=-1.0),
    "noise that is no number": settings(noise_multiplier=float("nan")),
    "a negative bound": settings(max_grad_norm=-1.0),
    "twice": twice,
    "another model's optimizer": settings(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
    "left midway": left_midway,
    "changed gradients, as by a GradScaler": scaler,
    "a gradient penalty": penalty,
    "max_norm": lambda: forward_of(lambda layer, x: layer(x.long().clamp(0, 2)), nn.Embedding(3, 2, max_norm=1.0)),
    "a nested tensor": nested,
    "the number of tokens of the whole batch": lambda: lm(True),
}


class Buffered(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mean", torch.zeros(sizes[0]))
