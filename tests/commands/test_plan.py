import json
import sys
from pathlib import Path

import pytest
from tests.commands.invoke import refused, run
from tests.scaling.small import GPT2, LLAMA

LLAMA_8B = Path(__file__).parents[1] / "examples" / "llama-8b.json"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    return file


def rows(output: str) -> dict[str, list[str]]:
    """The cells of each line of a table, by the first."""
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in output.splitlines() if "│" in line]
    return {first: rest for first, *rest in lines}


def test_a_model_of_eight_billion_parameters():
    output = run("plan", "--model-config", LLAMA_8B, "--world-size", 64, "--sharding", "fsdp", "--length", 4096,
                 "--memory", 40)  # fmt: skip
    assert "8,030,261,248 parameters" in output
    assert "64 processes, FSDP" in output
    assert "Estimates" in output
    table = rows(output)
    assert table["parameters"][:4] == ["0.47"] * 4
    assert table["optimizer state"][:4] == ["0.93"] * 4
    assert table["reduce-scatter of gradients"] == ["32.12", "31.62", "32.12", "31.62"]
    assert table["what is compared before a release"] == ["32 B", "2016 B", "0 B", "0 B"]
    assert table["fits into 40.00 GiB"] == ["yes"] * 4
    assert table["model.layers.*.mlp.gate_proj.weight"][:2] == ["14336×4096", "32"]
    assert float(table["together"][0]) > float(table["together"][1]) > 0


def test_one_process_and_modes(config):
    for mode, held in (("auto", True), ("ghost", False), ("per_layer", False)):
        output = run("plan", "--model-config", config, "--mode", mode, "--length", 64, "--dtype", "float32")
        assert "one process" in output
        assert "Communication" not in output
        assert ("GiB held" in output) == held
        assert "fits into" not in output


def test_advice(config):
    output = run("plan", "--model-config", config, "--length", 512, "--batch-size", 16, "--memory", 0.2)
    assert "- auto, one process, with checkpointing" in output or "- grad_sample_mode" in output
    assert "BatchMemoryManager" in output


@pytest.mark.parametrize("rates", ["default", "here"])
def test_json(config, rates):
    report = json.loads(run("plan", "--model-config", config, "--world-size", 2, "--length", 32, "--rates", rates,
                            "--optimizer", "sgd", "--json"))  # fmt: skip
    assert report["length"] == 32
    assert report["dtype"] == "bfloat16"
    assert report["setting"]["optimizer"] == "sgd"
    assert report["checkpointing"]["without"]["state"]["optimizer state"] == 0
    assert report["checkpointing"]["without"]["fits"] is None
    assert report["sent"][0]["handed"] == 4 * report["parameters"]
    assert report["advice"] == []


def test_refusals(config, tmp_path, monkeypatch, capsys):
    assert "cannot be read" in refused(monkeypatch, capsys, "plan", "--model-config", tmp_path / "none.json")
    config.write_text(json.dumps(GPT2))
    found = refused(monkeypatch, capsys, "plan", "--model-config", config, "--length", 200)
    assert "more than the model's 128 positions" in found
    config.write_text(json.dumps({"model_type": "no-such"}))
    assert "no causal language model" in refused(monkeypatch, capsys, "plan", "--model-config", config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in refused(monkeypatch, capsys, "plan", "--model-config", config)
