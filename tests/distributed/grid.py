"""The exactness grid: models × numbers of processes × modes × accumulation × ways to spread a model over processes."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.checking.reference import single_sample_loop

RECORDS, BATCH, CLASSES, WORDS, LENGTH = 24, 8, 3, 13, 6


class Checkpointed(nn.Module):
    """A network whose inner part is recomputed in the backward."""

    def __init__(self, first: nn.Module, inner: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = first, inner, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=False))


def mlp(kind: str) -> nn.Module:
    parts = nn.Linear(8, 16), nn.Sequential(nn.Tanh(), nn.Linear(16, 16), nn.Tanh()), nn.Linear(16, CLASSES)
    return Checkpointed(*parts) if kind == "checkpointed" else nn.Sequential(*parts)


def convnet(kind: str) -> nn.Module:
    parts = (
        nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2, padding=1), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 2), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(24, CLASSES)),
    )
    return Checkpointed(*parts) if kind == "checkpointed" else nn.Sequential(*parts)


def gpt2(kind: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return language_model(GPT2LMHeadModel(config), kind, ["c_attn", "c_proj"])


def llama(kind: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=8,
    )  # fmt: skip
    return language_model(LlamaForCausalLM(config), kind, ["q_proj", "v_proj"])


def language_model(model: Any, kind: str, targets: list[str]) -> nn.Module:
    """The model in full, with adapters, or recomputing its layers."""
    if kind == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if kind != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=targets, lora_dropout=0.0, init_lora_weights=False)
    return get_peft_model(model, config)


MODELS: dict[str, Callable[[str], nn.Module]] = {"mlp": mlp, "convnet": convnet, "gpt2": gpt2, "llama": llama}
KINDS = [
    (name, kind)
    for name in MODELS
    for kind in ("full", "lora", "checkpointed")
    if kind != "lora" or name in ("gpt2", "llama")
]


class Way:
    """How a model is spread over the processes; another column of the grid is another of these."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model that is trained."""
        return DistributedDataParallel(model)

    def held(self, wrapped: Any) -> AbstractContextManager[Any]:
        """A block whose backward is not the last before the step."""
        return wrapped.no_sync()

    def whole(self, value: Tensor) -> Tensor:
        """All of a parameter, or of its gradient; every process calls it."""
        return value.detach().clone()


class Shards(Way):
    """``fully_shard`` on blocks, and on the model for the rest."""

    def wrap(self, model: nn.Module) -> nn.Module:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        for block in itertools.chain(*lists) if lists else model.children():
            if any(True for _ in block.parameters()):
                fully_shard(block)
        fully_shard(model)
        return model

    @contextmanager
    def held(self, wrapped: Any) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(False)
        yield
        wrapped.set_requires_gradient_sync(True)

    def whole(self, value: Tensor) -> Tensor:
        return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


WAYS = {"ddp": Way(), "fsdp": Shards()}


@dataclass(frozen=True)
class Cell:
    """One run, in float32 and without noise.

    Attributes:
        model: one of ``MODELS``.
        kind: "full", "lora" or "checkpointed".
        mode: grad_sample_mode.
        pieces: backwards before each step.
        way: one of ``WAYS``.
    """

    model: str
    kind: str = "full"
    mode: str = "auto"
    pieces: int = 1
    way: str = "ddp"


CELLS = [
    Cell(*names, mode, pieces, way)
    for names, mode, pieces, way in itertools.product(KINDS, ("auto", "ghost"), (1, 3), WAYS)
]
SUBSET = {
    1: [Cell("mlp", "checkpointed", "ghost", 3)],
    2: [
        Cell("convnet", "checkpointed", "auto", 3),
        Cell("gpt2"),
        Cell("llama", "lora", "ghost", 3),
        Cell("gpt2", "checkpointed", "ghost", 1, "fsdp"),
        Cell("llama", "lora", "auto", 3, "fsdp"),
    ],
    4: [Cell("convnet", "full", "ghost"), Cell("mlp", "full", "auto", 3), Cell("convnet", "full", "auto", 3, "fsdp")],
}
"""What runs with the whole suite."""


def model_of(cell: Cell) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[cell.model](cell.kind)


def data(cell: Cell) -> TensorDataset:
    torch.manual_seed(0)
    if cell.model in ("gpt2", "llama"):
        ids = torch.randint(1, WORDS, (2, RECORDS, LENGTH))
        return TensorDataset(ids[0], ids[1], torch.arange(RECORDS))
    return TensorDataset(torch.randn(RECORDS, 8), torch.randint(0, CLASSES, (RECORDS,)), torch.arange(RECORDS))


def loss(model: nn.Module, batch: Any, criterion: Any = nn.functional.cross_entropy) -> Tensor:
    x, y = batch
    if x.is_floating_point():
        return criterion(model(x), y)
    return criterion(model(input_ids=x).logits.transpose(1, 2), y)


def bound_of(cell: Cell) -> float:
    """Half of the records are clipped to it at first."""
    records = data(cell)
    return single_sample_loop(model_of(cell), loss, records.tensors[:2]).max_grad_norm


@dataclass
class Found:
    """What a cell did.

    Attributes:
        expected: the expected size of a batch.
        bound: the clipping bound.
        steps: of each step this process's records, the weights before it and the released gradients.
    """

    expected: float
    bound: float
    steps: list[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]]


def run(rank: int, world: int, cells: list[Cell]) -> list[Found]:
    """Train each cell's model for an epoch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties
        return [one(world, cell) for cell in cells]


def one(world: int, cell: Cell) -> Found:
    way, bound = WAYS[cell.way], bound_of(cell)
    model = way.wrap(model_of(cell))
    engine = PrivacyEngine()
    trained = [p for p in model.parameters() if p.requires_grad]
    _, optimizer, loader, *rest = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(trained, lr=0.1),
        data_loader=DataLoader(data(cell), BATCH // world, generator=torch.Generator().manual_seed(5)),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        grad_sample_mode=cell.mode,
    )
    criterion = rest[0] if rest else nn.functional.cross_entropy
    named = dict(getattr(model, "module", model).named_parameters())
    found = Found(engine.plan.sampling.expected_batch_size, bound, [])
    for x, y, index in loader:
        optimizer.zero_grad()
        before = {name: way.whole(p) for name, p in named.items() if p.requires_grad}
        backward(way, model, criterion, (x.tensor_split(cell.pieces), y.tensor_split(cell.pieces)))
        optimizer.step()
        released = {name: way.whole(p.grad) for name, p in named.items() if p.requires_grad}
        found.steps.append((index.tolist(), before, released))
    return found


def backward(way: Way, model: nn.Module, criterion: Any, pieces: Any) -> None:
    """Each piece by a forward and backward of its own."""
    *early, last = zip(*pieces, strict=True)
    for piece in early:
        with way.held(model):
            loss(model, piece, criterion).backward()
    loss(model, last, criterion).backward()
