"""Where a private step waits for a GPU: once in each clip, and once before a release.

Without a GPU this is told on device "meta", whose tensors have no values: to ask one for its value is an error, but for
the places that are let through here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import NO_GPU
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.capture import asked_later, fingerprints
from tacit.errors import PrivacyError
from tacit.uses import TUNER, norms

ROWS = 6
FORMS = {"gram": ("gram", "pixels", "grouped"), "stored": ("stored", "grouped")}
"""How uses are held: chosen here, for to choose some are timed, once for each shape, and that waits."""
CLIP, RELEASE = "clip", "release"


@pytest.fixture
def reads() -> list[str]:
    """Where values were asked for."""
    return []


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    """A step on "meta", whose values are as they usually are: nothing is doubtful, and gradients are untouched."""

    def clip(questions: list[Tensor]) -> list[bool]:
        assert torch.stack(questions).is_meta
        reads.append(CLIP)
        return [True] + [False] * (len(questions) - 1)

    def release(prints: list[Any]) -> list[float]:
        reads.extend([RELEASE] * bool(prints))
        return [1.0] * len(prints)

    monkeypatch.setattr(norms, "answers", clip)
    for module in (fingerprints, asked_later):
        monkeypatch.setattr(module, "numbers", release)
    monkeypatch.setattr("tacit.attachment.Witness", lambda _: None)  # the first step is looked at, and no other is
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: kind != "meta" and enabled(kind))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 64)
        self.places = nn.Parameter(torch.zeros(16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.table(ids) + self.places).mean(1))


class Causal(nn.Module):
    """GPT-2, whose output layer is its table; called so that transformers' own code looks at no values."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=500, n_positions=32, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
        config._attn_implementation = "eager"
        self.inner = transformers.GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((1, 1, length, length), -1e9, device=ids.device).triu(1)
        return self.inner(ids, attention_mask=mask, use_cache=False).logits[:, -1]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(50, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))


def convolutions() -> nn.Module:
    body = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def ids(length: int) -> Tensor:
    return torch.randint(0, 100, (4 * ROWS, length))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(4 * ROWS, 50)),
    "encoder": (Encoder, lambda: ids(16)),
    "gpt2": (Causal, lambda: ids(32)),
    "convolutions": (convolutions, lambda: torch.randn(4 * ROWS, 3, 16, 16)),
}


class Steps:
    """Private steps of a model on a device."""

    def __init__(self, name: str, device: str, **settings: Any) -> None:
        torch.manual_seed(0)
        make, inputs = MODELS[name]
        model = make().to(device)
        self.device = device
        self.engine = PrivacyEngine()
        self.model, self.optimizer, self.loader = self.engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(inputs(), torch.randint(0, 10, (4 * ROWS,))), batch_size=ROWS),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            sampling="fixed-size",
            **settings,
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loader:
            yield x.to(self.device), y.to(self.device)

    def backward(self, x: Tensor, y: Tensor) -> None:
        F.cross_entropy(self.model(x), y).backward()

    def step(self, x: Tensor, y: Tensor, pieces: int = 1) -> None:
        self.optimizer.zero_grad()
        for rows, targets in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True):
            self.backward(rows, targets)
        self.optimizer.step()


def on_meta_steps(name: str, **settings: Any) -> Steps:
    return Steps(name, "meta", noise_generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_asks_in_its_clip_and_before_its_release(on_meta: None, reads: list[str], name: str, form: str):
    with TUNER.forced(*FORMS[form]):
        steps = on_meta_steps(name)
        for batch in steps.batches():
            reads.clear()
            steps.step(*batch)
            assert reads == [CLIP, RELEASE]


def test_groups_with_bounds_of_their_own_ask_once_each(on_meta: None, reads: list[str]):
    steps = on_meta_steps("mlp", clipping="per_layer")
    steps.step(*next(steps.batches()))
    assert reads == [CLIP] * 3 + [RELEASE]


def test_pieces_of_a_batch_ask_once_each(on_meta: None, reads: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tacit.attachment._overlap", lambda *_: False)  # without values there is no memory
    steps = on_meta_steps("encoder")
    steps.step(*next(steps.batches()), pieces=3)
    assert reads == [CLIP] * 3 + [RELEASE] * 2  # what the pieces left is asked about with one more


class TestAskedTogether:
    """What a GPU is asked together, on the CPU."""

    @pytest.fixture(autouse=True)
    def _switches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.together = lambda: monkeypatch.setattr(norms, "answers_at_once", lambda _: False)
        self.at_the_step = lambda: monkeypatch.setattr("tacit.capture.guard.answers_at_once", lambda _: False)

    def gradients(self, name: str, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        steps = Steps(name, "cpu")
        next(steps.batches())
        for module in steps.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        steps.backward(*batch)
        return [p.grad for p in steps.model.parameters() if p.grad is not None]

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("form", FORMS)
    def test_the_sums_are_the_same_to_the_last_bit(self, name: str, form: str):
        batch = next(Steps(name, "cpu").batches())
        with TUNER.forced(*FORMS[form]):
            alone = self.gradients(name, batch)
            self.together()
            both = self.gradients(name, batch)
        assert len(alone) > 3
        assert all(torch.equal(one, other) for one, other in zip(alone, both, strict=True))

    def changed(self, change: Callable[[Tensor], Any]) -> Steps:
        """Two pieces, before the second of which a gradient was changed in a way that leaves no trace."""
        self.at_the_step()
        steps = Steps("mlp", "cpu")
        x, y = next(steps.batches())
        self.weight = steps.model[0].weight
        steps.backward(x[:2], y[:2])
        change(self.weight.grad.data)
        steps.backward(x[2:4], y[2:4])
        return steps

    @pytest.mark.parametrize("change", [lambda g: g.mul_(100.0), lambda g: g.add_(1e-3), lambda g: g.fill_(torch.nan)])
    def test_a_change_between_two_pieces_is_refused_at_the_step(self, change: Callable[[Tensor], Any]):
        steps = self.changed(change)
        before = self.weight.detach().clone()
        with pytest.raises(PrivacyError, match=r"'0.weight' was changed after its backward"):
            steps.optimizer.step()
        with pytest.raises(PrivacyError, match="failed"):
            steps.optimizer.step()
        assert torch.equal(self.weight, before)
        assert steps.engine.accountant.steps == 0

    def test_a_gradient_may_be_cleared_between_two_pieces(self):
        self.changed(Tensor.zero_).optimizer.step()

    def test_a_gradient_that_a_hook_changed_is_refused_at_the_step(self):
        self.at_the_step()
        steps = Steps("mlp", "cpu")
        x, y = next(steps.batches())
        steps.backward(x[:2], y[:2])
        weight = steps.model[0].weight

        def change(gradient: Tensor) -> None:
            gradient.data.mul_(100.0)

        weight.register_hook(change)
        steps.backward(x[2:4], y[2:4])
        with pytest.raises(PrivacyError, match="beside its clipped sum"):
            steps.optimizer.step()


@NO_GPU
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "encoder", "gpt2"])
def test_a_gpu_is_waited_for_nowhere_else(
    reads: list[str], monkeypatch: pytest.MonkeyPatch, name: str, pieces: int
) -> None:
    def let_through(place: str, ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def asked(questions: Any) -> Any:
            mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("default")
            try:
                reads.extend([place] * bool(questions))
                return ask(questions)
            finally:
                torch.cuda.set_sync_debug_mode(mode)

        return asked

    monkeypatch.setattr(norms, "answers", let_through(CLIP, norms.answers))
    for module in (fingerprints, asked_later):
        monkeypatch.setattr(module, "numbers", let_through(RELEASE, module.numbers))
    with TUNER.forced("gram"):
        steps = Steps(name, "cuda")
        for batch in steps.batches():  # the first step is looked at, kernels are compiled, noise gets its key
            steps.step(*batch, pieces=pieces)
        batch = next(steps.batches())
        torch.cuda.synchronize()
        reads.clear()
        try:
            torch.cuda.set_sync_debug_mode("error")
            steps.step(*batch, pieces=pieces)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert reads == [CLIP] * pieces + [RELEASE] * (1 if pieces == 1 else 2)
