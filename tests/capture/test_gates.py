"""Gates of several small parameters in one: each keeps what a gate of its own would hold."""

import pytest
import torch
from tests.small_run import make, step
from torch import nn
from torch.autograd.graph import get_gradient_edge

from tacit.errors import LeakError, PrivacyError


def loss_of(model, loader):
    x, y = next(iter(loader))
    return nn.functional.cross_entropy(model(x), y)


def test_all_small_parameters_have_one_gate():
    _, model, _, loader = make()
    gates = {edge[0] for p in model.parameters() for edge in [get_gradient_edge(p)]}
    node = loss_of(model, loader).grad_fn
    seen, pending = set(), [node]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [edge[0] for edge in node.next_functions]
    names = [node.name() for node in seen]
    assert gates <= seen
    assert names.count("JointGateBackward") == 1
    assert "GateBackward" not in names


@pytest.mark.parametrize("chosen", ["weight", "bias"])
def test_a_backward_to_one_of_them_reaches_no_other(chosen):
    _, model, optimizer, loader = make(noise_multiplier=0.0, max_grad_norm=1e6)
    loss_of(model, loader).backward(inputs=[getattr(model, chosen)])
    there = {name for name, p in model.named_parameters() if p.grad is not None}
    assert there == {chosen}
    optimizer.step()


def test_what_a_gate_returned_in_an_earlier_backward_is_not_expected_in_a_later_one():
    _, model, optimizer, loader = make()
    loss_of(model, loader).backward(inputs=[model.weight])
    with pytest.raises(LeakError, match="'bias'"):
        (model.bias * 2).sum().backward()
    with pytest.raises(PrivacyError, match=r"zero_grad"):
        optimizer.step()
    optimizer.zero_grad()
    step(model, optimizer, next(iter(loader)))


def test_a_penalty_beside_the_clipped_sum_is_refused():
    _, model, _, loader = make()
    loss = loss_of(model, loader)
    with pytest.raises(LeakError, match="beside its clipped sum"):
        (loss + model.bias.square().sum()).backward()


@pytest.mark.parametrize("features", [3, 6000])
def test_a_gradient_that_a_later_hook_of_its_node_exchanges_is_not_released(features):
    _, model, optimizer, loader = make(features=features)
    node = get_gradient_edge(model.weight).node
    node.register_prehook(lambda gradients: (gradients[0] * 1000,))
    loss_of(model, loader).backward()
    with pytest.raises(PrivacyError, match="'weight' was changed"):
        optimizer.step()


def test_sums_of_two_backwards_add_up():
    _, model, optimizer, loader = make(noise_multiplier=0.0, max_grad_norm=1.0)
    x, y = next(iter(loader))
    half = len(x) // 2
    found = []
    for parts in ([slice(None)], [slice(0, half), slice(half, None)]):
        optimizer.zero_grad()
        for part in parts:
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def scaled_behind_its_version(gradient):
    gradient.data.mul_(1000)


HOOKS = {
    "hook of the parameter": lambda p: p.register_hook(scaled_behind_its_version),
    "later hook of the node": lambda p: get_gradient_edge(p).node.register_prehook(lambda g: (g[0] * 1000,)),
}


@pytest.mark.parametrize("features", [3, 6000])
@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_gradient_that_is_changed_on_its_way_to_another_one_is_not_released(hook, cleared, features):
    _, model, optimizer, loader = make(features=features)
    x, y = next(iter(loader))
    half = len(x) // 2
    nn.functional.cross_entropy(model(x[:half]), y[:half]).backward()
    if cleared:
        optimizer.zero_grad(set_to_none=False)
    hook(model.weight)

    def train():
        nn.functional.cross_entropy(model(x[half:]), y[half:]).backward()
        optimizer.step()

    with pytest.raises(PrivacyError, match="'weight'"):
        train()
