"""The criterion of ghost mode: any loss, per sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import LeakError, SecondBackwardError
from tacit.testing import check_exactness

B, D, K = 6, 4, 3


def make(criterion, model=None, **changes):
    torch.manual_seed(0)
    model = model or nn.Linear(D, K)
    engine = PrivacyEngine()
    _, _optimizer, _loader, wrapped = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.arange(B)), batch_size=B),
        noise_multiplier=0.0,
        max_grad_norm=0.2,
        grad_sample_mode="ghost",
        criterion=criterion,
        **changes,
    )
    return engine, model, wrapped


def functional(output, target, scale=1.0):
    return scale * F.cross_entropy(output, target)


def branching(output, target):
    # a data-dependent branch: vmap cannot vectorize it
    return F.cross_entropy(output, target) * (2.0 if float(output.detach().sum()) > 0 else 1.0)


LOSSES = {
    "cross entropy": nn.CrossEntropyLoss(),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "function": functional,
    "lambda": lambda o, t: (o.logsumexp(1) - o.gather(1, t[:, None])[:, 0]).mean(),
    "branching": branching,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_with_and_without_reduction(loss):
    torch.manual_seed(0)
    check_exactness(
        nn.Linear(D, K).double(),
        lambda m, b, criterion: criterion(m(b[0]), b[1]),
        (torch.randn(B, D).double(), torch.randint(0, K, (B,))),
        grad_sample_mode="ghost",
        criterion=loss,
    )


@pytest.mark.filterwarnings("ignore:Using a target size")  # the reference loop meets (1,) and (1, 1)
@pytest.mark.parametrize("loss", [nn.MSELoss, nn.BCEWithLogitsLoss, nn.L1Loss, nn.SmoothL1Loss])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(B,), (B, 1)])
@pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
def test_one_output_and_targets_with_or_without_a_dimension(loss, reduction, shape, mode):
    torch.manual_seed(0)
    flat = loss is nn.BCEWithLogitsLoss or mode != "ghost"  # the plain losses need equal shapes

    def loss_fn(model, batch, criterion):
        x, y = batch
        out = model(x)
        return criterion(out, y.reshape(out.shape) if flat else y)

    check_exactness(
        nn.Linear(D, 1).double(),
        loss_fn,
        (torch.randn(B, D).double(), torch.rand(shape).double()),
        grad_sample_mode=mode,
        criterion=loss(reduction=reduction),
        loss_reduction=reduction,
    )


def test_broadcast_shapes_are_read_per_sample():
    _, model, wrapped = make(nn.MSELoss(), nn.Linear(D, 1))
    x, y = torch.randn(B, D), torch.randn(B)
    losses = wrapped.per_sample(model(x), y)
    torch.testing.assert_close(losses, (model(x)[:, 0] - y).square())


def test_class_weights_are_not_normalized_by_other_samples():
    weight = torch.tensor([1.0, 2.0, 3.0])
    _, model, wrapped = make(nn.CrossEntropyLoss(weight=weight))
    x, y = torch.randn(B, D), torch.randint(0, K, (B,))
    expected = F.cross_entropy(model(x), y, reduction="none") * weight[y]
    torch.testing.assert_close(wrapped.per_sample(model(x), y), expected)


def test_token_losses_are_divided_by_the_samples_own_tokens():
    _, _, wrapped = make(nn.CrossEntropyLoss())
    logits, y = torch.randn(B, K, 5), torch.randint(0, K, (B, 5))
    y[0, 2:] = -100
    expected = F.cross_entropy(logits[0, :, :2].t(), y[0, :2])
    torch.testing.assert_close(wrapped.per_sample(logits, y)[0], expected)


def test_values_equal_the_plain_loss():
    for reduction in ("mean", "sum"):
        plain = nn.CrossEntropyLoss(reduction=reduction)
        _, model, wrapped = make(plain, loss_reduction=reduction)
        x, y = torch.randn(B, D), torch.randint(0, K, (B,))
        torch.testing.assert_close(wrapped(model(x), y), plain(model(x), y))
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(wrapped(model(x), y), plain(model(x), y))


def test_extra_arguments_are_handed_on():
    _, model, wrapped = make(functional)
    x, y = torch.randn(B, D), torch.randint(0, K, (B,))
    torch.testing.assert_close(wrapped(model(x), y, scale=3.0), 3 * F.cross_entropy(model(x), y))


def test_a_plain_term_beside_the_criterion_is_refused():
    _, model, wrapped = make(nn.CrossEntropyLoss())
    out = model(torch.randn(B, D))
    loss = wrapped(out, torch.randint(0, K, (B,))) + out.square().mean()
    with pytest.raises(SecondBackwardError, match="another term"):
        loss.backward()


def test_several_terms_are_clipped_together():
    torch.manual_seed(0)

    def loss_fn(model, batch, criterion):
        x, y = batch
        out = model(x)
        return criterion(out, y) + 0.5 * criterion(model(x * 2), y) - 0.1 * criterion(out * 2, y)

    check_exactness(
        nn.Linear(D, K).double(),
        loss_fn,
        (torch.randn(B, D).double(), torch.randint(0, K, (B,))),
        grad_sample_mode="ghost",
        criterion=nn.CrossEntropyLoss(),
    )


def test_scaling_the_value_scales_the_gradient():
    torch.manual_seed(0)
    check_exactness(
        nn.Linear(D, K).double(),
        lambda m, b, criterion: 0.01 * criterion(m(b[0]), b[1]),
        (torch.randn(B, D).double(), torch.randint(0, K, (B,))),
        grad_sample_mode="ghost",
        criterion=nn.CrossEntropyLoss(),
    )


def test_an_input_that_wants_a_gradient_gets_the_plain_one():
    torch.manual_seed(0)
    _, model, wrapped = make(nn.CrossEntropyLoss())
    x, y = torch.randn(B, D, requires_grad=True), torch.randint(0, K, (B,))
    wrapped(model(x), y).backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    torch.testing.assert_close(x.grad, expected)


def test_second_backward_is_refused():
    _, model, wrapped = make(nn.CrossEntropyLoss())
    loss = wrapped(model(torch.randn(B, D)), torch.randint(0, K, (B,)))
    loss.backward(retain_graph=True)
    with pytest.raises(SecondBackwardError):
        loss.backward()


def test_ghost_holds_no_activations_between_its_passes(monkeypatch):
    """The first pass keeps norms only: no use outlives its rule's backward where a parameter is used once."""
    import weakref

    from tacit.uses import Outer

    alive, most = [], []

    class Watched(Outer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            alive.append(weakref.ref(self))
            most.append(sum(ref() is not None for ref in alive))

    monkeypatch.setattr("tacit.rules.linear.Outer", Watched)
    model = nn.Sequential(*[nn.Linear(D, D) for _ in range(6)])
    _, model, wrapped = make(nn.MSELoss(), model)
    x = torch.randn(B, D)
    wrapped(model(x), x).backward()
    assert len(most) == 12  # two passes over six layers
    assert max(most) == 1


def test_a_way_around_the_gates_is_refused_in_ghost_mode_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(D, D), nn.Linear(D, K)

        def forward(self, x):
            return self.second(torch.from_numpy(self.first(x).detach().numpy()))

    _, model, wrapped = make(nn.CrossEntropyLoss(), Net())
    with pytest.raises(LeakError, match="second"):
        wrapped(model(torch.randn(B, D)), torch.randint(0, K, (B,)))


def test_a_plain_loss_in_ghost_mode_is_clipped_just_the_same():
    engine, model, wrapped = make(nn.CrossEntropyLoss())
    x, y = torch.randn(B, D), torch.randint(0, K, (B,))
    wrapped(model(x), y).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert engine.stats.fraction_clipped > 0
    for a, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("classes", [4, B, B * 2])
def test_token_losses_that_were_flattened(classes):
    """Rows are tokens, not samples: the plain loss is used, also if there are as many classes as samples."""
    torch.manual_seed(0)

    def loss_fn(model, batch, criterion):
        x, y = batch
        return criterion(model(x).flatten(0, 1), y.flatten())

    check_exactness(
        nn.Linear(D, classes).double(),
        loss_fn,
        (torch.randn(B, 2, D).double(), torch.randint(0, classes, (B, 2))),
        grad_sample_mode="ghost",
        criterion=nn.CrossEntropyLoss(),
    )
