import torch

from benchmarks import device


def test_the_clock_waits_for_cuda(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("done"))
    device.clock_of("cuda")()
    assert waited == ["done"]
    device.clock_of("cpu")()
    assert waited == ["done"]
