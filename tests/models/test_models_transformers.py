"""Unmodified Hugging Face models: full, LoRA and DoRA, checkpointed or not."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

B, V = 4, 13


def gpt2(**options: Any) -> Any:
    return transformers.GPT2Config(
        vocab_size=V, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0, **options,
    )  # fmt: skip


def bert() -> Any:
    return transformers.BertConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip


def llama() -> Any:
    return transformers.LlamaConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=8,
    )  # fmt: skip


def logits(m: nn.Module, b: Any, c: Any) -> Tensor:
    out = m(input_ids=b[0]).logits
    return c(out.transpose(1, 2) if out.dim() == 3 else out, b[1])


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "gpt2": (lambda: transformers.GPT2LMHeadModel(gpt2()), ["c_attn", "c_proj"]),
    "bert": (lambda: transformers.BertForSequenceClassification(bert()), ["query", "value"]),
    "llama": (lambda: transformers.LlamaForCausalLM(llama()), ["q_proj", "v_proj"]),
}
NAMES = pytest.mark.parametrize("name", MODELS)
THIRD_PARTY = [
    (FutureWarning, ".*checkpoint.*"),
    (FutureWarning, ".*use_reentrant.*"),
    (UserWarning, ".*use_reentrant.*"),
    (UserWarning, ".*fan_in_fan_out.*"),
    (UserWarning, ".*None of the inputs have requires_grad.*"),
    (UserWarning, ".*tie_word_embeddings.*"),
    (UserWarning, ".*tied.*"),
]


@pytest.fixture(autouse=True)
def _third_party_warnings() -> Any:
    with warnings.catch_warnings():
        for category, message in THIRD_PARTY:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def batch_for(name: str, T: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, V, (B, T))
    return ids, torch.randint(0, 2, (B,)) if name == "bert" else torch.randint(0, V, (B, T))


def adapted(model: nn.Module, targets: Any, **options: Any) -> nn.Module:
    config = peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.0, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


@NAMES
@pytest.mark.parametrize("T", [6, B])
def test_full(exact: Any, name: str, T: int) -> None:
    exact.loss(MODELS[name][0]().double(), logits, batch_for(name, T), nn.CrossEntropyLoss())


@NAMES
@pytest.mark.parametrize("T", [6, B])
def test_full_in_float32(name: str, T: int) -> None:
    from tacit.testing import check_exactness

    torch.manual_seed(0)
    report = check_exactness(
        MODELS[name][0](), logits, batch_for(name, T), criterion=nn.CrossEntropyLoss(), tolerance=1e-5
    )
    assert report.sum_error < 1e-5


@NAMES
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters(exact: Any, name: str, dora: bool) -> None:
    make, targets = MODELS[name]
    model = adapted(make(), targets, use_dora=dora).double()
    exact.loss(model, logits, batch_for(name, B), nn.CrossEntropyLoss())


@NAMES
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "plain"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_activation_checkpointing(exact: Any, name: str, reentrant: bool, kind: str) -> None:
    model = MODELS[name][0]()
    if kind == "lora":
        model = adapted(model, "all-linear")
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    exact.loss(model.double(), logits, batch_for(name, B), nn.CrossEntropyLoss())


@pytest.mark.parametrize("T", [6, B])
def test_adapters_of_an_embedding(exact: Any, T: int) -> None:
    model = adapted(transformers.GPT2LMHeadModel(gpt2()), ["wte", "c_attn"]).double()
    exact.loss(model, logits, batch_for("gpt2", T), nn.CrossEntropyLoss())


@pytest.mark.parametrize("T", [6, B])
def test_sequence_classification_picks_the_last_token(exact: Any, T: int) -> None:
    model = transformers.GPT2ForSequenceClassification(gpt2(pad_token_id=0)).double()
    ids = torch.randint(1, V, (B, T))
    ids[0, T // 2 :] = 0
    exact.loss(model, logits, (ids, torch.randint(0, 2, (B,))), nn.CrossEntropyLoss())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("T", [6, B])
def test_the_models_own_loss(exact: Any, name: str, T: int) -> None:
    if exact.mode == "ghost":
        exact = type(exact)("auto", torch.float64)  # ghost's criterion has no part in it
    ids = torch.randint(1, V, (B, T))
    exact.loss(MODELS[name][0]().double(), lambda m, b: m(input_ids=b, labels=b).loss, ids)


def test_an_attention_mask(exact: Any) -> None:
    ids, y = batch_for("bert", B)
    mask = torch.ones(B, B, dtype=torch.long).tril()
    exact.loss(
        MODELS["bert"][0]().double(),
        lambda m, b, c: c(m(input_ids=b[0], attention_mask=b[2]).logits, b[1]),
        (ids, y, mask),
        nn.CrossEntropyLoss(),
    )


@pytest.mark.parametrize("channels", [3, B])
def test_vision_transformer(exact: Any, channels: int) -> None:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4,
        num_channels=channels, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    exact.loss(
        transformers.ViTForImageClassification(config).double(),
        lambda m, b, c: c(m(pixel_values=b[0]).logits, b[1]),
        (torch.randn(B, channels, 8, 8).double(), torch.randint(0, 2, (B,))),
        nn.CrossEntropyLoss(),
    )
