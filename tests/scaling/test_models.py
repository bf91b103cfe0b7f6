"""Building models from configurations: what works, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tests.scaling.small import EQUAL, GPT2, LLAMA

from tacit.errors import ConfigurationError
from tacit.scaling.models import build, read_config, token_loss
from tacit.scaling.survey import survey

OTHERS = {
    "mistral": LLAMA | {"model_type": "mistral"},
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "gemma": LLAMA | {"model_type": "gemma", "head_dim": 32},
    "phi": LLAMA | {"model_type": "phi"},
    "gpt_neox": EQUAL | {"model_type": "gpt_neox"},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "ffn_dim": 48,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
}


def test_nothing_is_allocated():
    model = build(LLAMA, torch.bfloat16)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.training


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(name):
    model = build(OTHERS[name], torch.float32)
    found = survey(model, token_loss(model, OTHERS[name], 2, 16))
    assert {each for each, _ in found.uses} <= set(found.parameters)
    assert len(found.activations.blocks) == len(found.block_parameters) > 1


def test_attention_that_cannot_be_stood_in_for():
    with pytest.raises(ConfigurationError, match=r"a gptj chooses between kernels of its own.*engine\.explain\(\)"):
        build({"model_type": "gptj", "n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 64}, torch.float32)


def test_experts_that_are_chosen_by_values():
    config = EQUAL | {"model_type": "mixtral", "num_local_experts": 4}
    model = build(config, torch.float32)
    with pytest.raises(ConfigurationError, match="Experts that are chosen by values"):
        survey(model, token_loss(model, config, 2, 8))


def test_a_file_or_its_folder(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GPT2))
    assert read_config(file) == read_config(tmp_path) == GPT2


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"model_type": 3}'])
def test_files_that_are_no_configuration(tmp_path, text):
    file = Path(tmp_path) / "some.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match="some.json"):
        read_config(file)


@pytest.mark.parametrize("config", [{"model_type": "no-such"}, {"model_type": "vit"}, LLAMA | {"hidden_size": "x"}])
def test_models_that_cannot_be_built(config):
    with pytest.raises(ConfigurationError, match="no causal language model can be built"):
        build(config, torch.float32)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match="pip install transformers"):
        build(LLAMA, torch.float32)


def test_more_tokens_than_positions():
    model = build(GPT2, torch.float32)
    with pytest.raises(ConfigurationError, match="--length 129 is more than the model's 128 positions"):
        token_loss(model, GPT2, 1, 129)
