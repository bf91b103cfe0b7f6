"""The networks that people bring, with their batches and their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo import networks as nets
from benchmarks.zoo.entry import Entry, wrapping

Batch = Callable[[int, int], Any]
Loss = Callable[[Any, Any], Tensor]


def with_adapters(model: nn.Module) -> nn.Module:
    """LoRA on every layer that PEFT has it for."""
    kinds = (nn.Linear, nn.Embedding, nn.Conv2d)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [n for n, m in model.named_modules() if isinstance(m, kinds) and f"{n}.weight" in trainable]
    adapted: nn.Module = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names), model)
    return adapted


def squares(model: nn.Module, batch: Any) -> Tensor:
    """The mean squared distance of the output from the batch's last tensor."""
    distances: Tensor = (model(*batch[:-1]) - batch[-1]).square()
    return (distances.flatten(1).mean(1) if distances.dim() > 1 else distances).mean()


def simsiam(model: nn.Module, batch: Any) -> Tensor:
    p1, p2, z1, z2 = model(*batch)
    return -(F.cosine_similarity(p1, z2, dim=-1) + F.cosine_similarity(p2, z1, dim=-1)).mean() / 2


def triplet(model: nn.Module, batch: Any) -> Tensor:
    return F.triplet_margin_loss(*(model(x) for x in batch), margin=5.0)


def wasserstein(model: nn.Module, batch: Any) -> Tensor:
    real, fake = batch
    loss: Tensor = (model(fake) - model(real)).mean()
    return loss


def with_penalty(model: nn.Module, batch: Any) -> Tensor:
    """WGAN-GP: the critic's slope at points between real and generated samples is to be one."""
    between = batch[0].lerp(batch[1], 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return wasserstein(model, batch) + 10 * (slope.norm(dim=1) - 1).square().mean()


def evidence(model: nn.Module, batch: Any) -> Tensor:
    out, divergence = model(*batch)
    return ((out - batch[0]).square().sum(-1) + divergence).mean()


def products(model: nn.Module, batch: Any) -> Tensor:
    out = model(left=batch[0], right=batch[1], scale=0.5)
    loss: Tensor = (out.first * out.rest["right"]).square().sum(1).mean()
    return loss


def randn(*shapes: tuple[int, ...]) -> Batch:
    """Tensors (B, *shape); -1 stands for T."""
    return lambda B, T: tuple(torch.randn(B, *(T if n == -1 else n for n in shape)) for shape in shapes)


def sequences(B: int, T: int) -> Any:
    lengths = torch.arange(B) % T + 1
    lengths[-1] = T
    return torch.randint(0, 7, (B, T)), lengths, torch.randn(B, 3)


def graphs(B: int, T: int) -> Any:
    return torch.randn(B, T, 4), (torch.rand(B, T, T) > 0.5).float(), torch.randn(B, 2)


def tables(B: int, T: int) -> Any:
    return torch.randn(B, 4), *(torch.randint(0, n, (B, T)) for n in (5, 7, 3)), torch.randn(B)


def _entry(build: Callable[[], nn.Module], batch: Batch, loss: Loss, *blocks: str) -> Entry:
    return Entry(build, batch, loss, with_adapters, wrapping(*blocks))


def triple() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


PICTURE = (3, 32, 32)
BROUGHT: dict[str, Entry] = {
    "ResNet-18 with GroupNorm": _entry(nets.resnet_18, randn(PICTURE, (3,)), squares, *map(str, range(5, 12))),
    "U-Net": _entry(nets.UNet, randn((3, 4, 4), (3, 4, 4)), squares, "deep", "up"),
    "SimSiam": _entry(nets.SimSiam, randn((4,), (4,)), simsiam, "predictor"),
    "BYOL": _entry(nets.Byol, randn((4,), (4,)), lambda m, b: m(*b).mean(), "predictor"),
    "siamese triplet": _entry(triple, randn((4,), (4,), (4,)), triplet, "2"),
    "GAN critic": _entry(nets.critic, randn((4,), (4,)), wasserstein, "2"),
    "WGAN-GP critic": Entry(nets.critic, randn((4,), (4,)), with_penalty, with_adapters, None),
    "VAE": _entry(nets.Vae, randn((4,), (3,)), evidence, "decoder"),
    "LSTM on packed sequences": _entry(lambda: nets.Packed(nn.LSTM), sequences, squares, "head"),
    "GRU on packed sequences": _entry(lambda: nets.Packed(nn.GRU), sequences, squares, "head"),
    "graph network": _entry(nets.Graph, graphs, squares, "head"),
    "DLRM": _entry(nets.Dlrm, tables, squares, "top"),
    "mixture of experts, masks": _entry(lambda: nets.Routed("masks"), randn((-1, 4), (-1, 3)), squares, "experts"),
    "mixture of experts, dense": _entry(lambda: nets.Routed("dense"), randn((-1, 4), (-1, 3)), squares, "experts"),
    "calls until done": _entry(nets.Halting, randn((4,), (2,)), squares, "head"),
    "weight-shared recursion": _entry(nets.Recursive, randn((-1, 4), (-1, 4)), squares, "cell"),
    "keywords, dataclass": Entry(nets.Keywords, randn((4,), (2,)), products, with_adapters, None),
}
