"""The front door: what comes back, what is refused, what detach leaves."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from tests import small_run
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from tacit import BatchMemoryManager, PrivacyEngine, PrivacyError
from tacit.accounting import epsilon
from tacit.errors import (
    ConfigurationError,
    CoupledLossWarning,
    LeakError,
    MixingError,
    NoRuleError,
    SamplingError,
    SecondBackwardError,
)
from tacit.optimizer import PrivateOptimizer
from tacit.testing import check_exactness

RECORDS, FEATURES, CLASSES = 24, 5, 3


def make_parts(batch_size=8, model=None, **loader):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(FEATURES, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    data = TensorDataset(torch.randn(RECORDS, FEATURES), torch.randint(0, CLASSES, (RECORDS,)))
    return SimpleNamespace(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=batch_size, **loader),
    )


def make_private(parts=None, engine=None, **changes):
    parts = parts or make_parts()
    settings = {"noise_multiplier": 0.0, "max_grad_norm": 1.0} | vars(parts) | changes
    engine = engine or PrivacyEngine()
    return engine, *engine.make_private(**settings)


def full_batch(**changes):
    """A run whose every draw is the whole data set."""
    return make_private(make_parts(batch_size=RECORDS), **changes)


def backward(model, batch):
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def train(model, optimizer, loader, epochs):
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()


class TestWhatComesBack:
    def test_the_model_is_the_same_object(self):
        parts = make_parts()
        keys, kind = list(parts.module.state_dict()), type(parts.module)
        _, model, optimizer, loader = make_private(parts)
        assert model is parts.module
        assert type(model) is kind
        assert list(model.state_dict()) == keys
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(loader, DataLoader)
        assert len(loader) == 3

    def test_ghost_returns_the_criterion_fourth(self):
        _, *made = make_private(grad_sample_mode="ghost", criterion=nn.CrossEntropyLoss())
        assert len(made) == 4
        assert callable(made[3])

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_copies_are_plain_models(self, how):
        _, model, optimizer, loader = full_batch()
        if how == "deepcopy":
            other = copy.deepcopy(model)
        elif how == "pickle":
            other = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        x, y = next(iter(loader))
        plain = copy.deepcopy(other)
        assert torch.equal(other(x), model(x))
        # The copy trains as if nothing had happened, and with its own weights.
        nn.functional.cross_entropy(other(x), y, reduction="sum").backward()
        expected = torch.autograd.grad(
            nn.functional.cross_entropy(plain(x), y, reduction="sum"), list(plain.parameters())
        )
        for p, g in zip(other.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g)
        # ... and the original is still private.
        backward(model, (x, y))
        optimizer.step()
        assert not torch.equal(other[0].weight, model[0].weight)

    def test_detach_restores_model_and_optimizer(self):
        parts = make_parts()
        before = {m: dict(m.__dict__) for m in parts.module.modules()}
        engine, model, _, _ = make_private(parts, grad_sample_mode="hooks")
        batch = next(iter(parts.data_loader))
        backward(model, batch)
        engine.detach()
        assert {m: set(m.__dict__) for m in model.modules()} == {m: set(d) for m, d in before.items()}
        assert not any(hasattr(p, "grad_sample") for p in model.parameters())
        model.zero_grad()
        backward(model, batch)
        plain = [p.grad.clone() for p in model.parameters()]
        expected = torch.autograd.grad(nn.functional.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
        for found, g in zip(plain, expected, strict=True):
            torch.testing.assert_close(found, g)
        parts.optimizer.step()  # no longer refused
        make_private(parts)  # and can be made private again

    def test_forward_signature_survives(self):
        import inspect

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(FEATURES, CLASSES)

            def forward(self, features, scale=1.0):
                return self.layer(features) * scale

        parts = make_parts(model=Net())
        _, model, _, _ = make_private(parts)
        assert list(inspect.signature(model.forward).parameters) == ["features", "scale"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"noise_multiplier": -1.0}, "noise_multiplier"),
            ({"noise_multiplier": float("nan")}, "finite"),
            ({"noise_multiplier": "1"}, "not a number"),
            ({"max_grad_norm": 0.0}, "max_grad_norm"),
            ({"max_grad_norm": float("inf")}, "finite"),
            ({"loss_reduction": "none"}, "loss_reduction"),
            ({"clipping": "flatt"}, "clipping"),
            ({"grad_sample_mode": "gost"}, "grad_sample_mode"),
            ({"criterion": nn.MSELoss()}, "ghost"),
        ],
    )
    def test_values(self, changes, words):
        with pytest.raises(ConfigurationError, match=words):
            make_private(**changes)

    def test_unknown_keyword(self):
        with pytest.raises(TypeError, match="max_gradnorm"):
            make_private(max_gradnorm=1.0)

    def test_secure_mode_is_true_or_false(self):
        with pytest.raises(ConfigurationError, match="secure_mode"):
            PrivacyEngine(secure_mode="yes")

    def test_twice(self):
        parts = make_parts()
        engine, *_ = make_private(parts)
        with pytest.raises(ConfigurationError, match="private"):
            make_private(parts, engine)
        with pytest.raises(ConfigurationError, match="private already"):
            make_private(parts)

    def test_a_part_of_a_private_model(self):
        parts = make_parts()
        make_private(parts)
        inner = make_parts(model=parts.module[0])
        with pytest.raises(ConfigurationError, match="private already"):
            make_private(inner)

    def test_foreign_optimizer(self):
        parts = make_parts()
        parts.optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
        with pytest.raises(ConfigurationError, match="not the model's"):
            make_private(parts)

    def test_lbfgs(self):
        parts = make_parts()
        parts.optimizer = torch.optim.LBFGS(parts.module.parameters())
        with pytest.raises(ConfigurationError, match="LBFGS"):
            make_private(parts)
        assert "forward" not in parts.module.__dict__  # refused before anything was touched

    def test_data_parallel(self):
        parts = make_parts()
        parts.module = nn.DataParallel(parts.module)
        with pytest.raises(ConfigurationError, match="DataParallel"):
            make_private(parts)

    def test_nothing_to_train(self):
        parts = make_parts()
        parts.module.requires_grad_(False)
        with pytest.raises(ConfigurationError, match="nothing to train"):
            make_private(parts)

    def test_batch_norm_in_train_mode(self):
        model = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
        with pytest.raises(MixingError, match=r"train mode: 1\."):
            make_private(make_parts(model=model))

    @pytest.mark.parametrize("norm", [nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)])
    def test_batch_norm_switched_on_later(self, norm):
        model = nn.Sequential(nn.Linear(FEATURES, 4), norm, nn.Linear(4, CLASSES))
        model[1].eval()
        if norm.running_mean is None:  # without running statistics eval mode uses the batch's too
            _, model, *_ = make_private(make_parts(model=model))
        else:
            _, model, *_ = make_private(make_parts(model=model))
            model.train()
        with pytest.raises(MixingError, match="batch normalization in train mode"):
            model(torch.randn(4, FEATURES))

    def test_functional_batch_norm(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(FEATURES, CLASSES)

            def forward(self, x):
                return nn.functional.batch_norm(self.layer(x), None, None, training=True)

        _, model, *_ = make_private(make_parts(model=Net()))
        with pytest.raises(MixingError, match="Net.forward"):
            model(torch.randn(4, FEATURES))

    def test_weighted_sampler_subset_sampler_iterable(self):
        data = TensorDataset(torch.randn(RECORDS, FEATURES), torch.randint(0, CLASSES, (RECORDS,)))
        parts = make_parts()
        parts.data_loader = DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * RECORDS, RECORDS))
        with pytest.raises(SamplingError, match="WeightedRandomSampler"):
            make_private(parts)
        parts.data_loader = DataLoader(Subset(data, range(10)), batch_size=4)
        make_private(parts)

        class Stream(IterableDataset):
            def __iter__(self):
                yield torch.zeros(FEATURES), 0

        other = make_parts()
        other.data_loader = DataLoader(Stream(), batch_size=4)
        with pytest.raises(SamplingError, match="IterableDataset"):
            make_private(other)

    def test_drop_last_that_changes_the_rate(self):
        with pytest.raises(SamplingError, match="drop_last"):
            make_private(make_parts(batch_size=7, drop_last=True))
        make_private(make_parts(batch_size=8, drop_last=True))

    def test_stepping_the_original_optimizer(self):
        parts = make_parts()
        _, model, _, loader = make_private(parts)
        backward(model, next(iter(loader)))
        with pytest.raises(PrivacyError, match="original optimizer"):
            parts.optimizer.step()

    def test_iterating_the_original_loader(self):
        parts = make_parts()
        _, model, optimizer, _ = make_private(parts)
        weights = [p.detach().clone() for p in model.parameters()]
        backward(model, next(iter(parts.data_loader)))
        with pytest.raises(SamplingError, match="original DataLoader"):
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))

    def test_two_steps_on_one_batch(self):
        _, model, optimizer, loader = full_batch()
        batch = next(iter(loader))
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
        backward(model, batch)
        with pytest.raises(SamplingError, match="released already"):
            optimizer.step()


class Penalized(nn.Module):
    """A model that offers its users many ways around the clipping."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.layer(x)


class TestAroundTheGates:
    def setup_method(self):
        _, self.model, self.optimizer, self.loader = full_batch_of(Penalized())
        self.batch = next(iter(self.loader))

    def check_refused(self, loss, match="without passing|beside its clipped sum"):
        weights = [p.detach().clone() for p in self.model.parameters()]
        with pytest.raises(LeakError, match=match):
            loss.backward()
        with pytest.raises(PrivacyError, match="zero_grad"):
            self.optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(weights, self.model.parameters(), strict=True))
        # After zero_grad the run goes on.
        self.optimizer.zero_grad()
        backward(self.model, self.batch)
        self.optimizer.step()

    def test_parameter_outside_a_private_forward(self):
        h = nn.functional.linear(self.batch[0], self.model.layer.weight)
        self.check_refused(h.sum(), match=r"'layer\.weight' without passing")

    def test_penalty_on_weights(self):
        loss = nn.functional.cross_entropy(self.model(self.batch[0]), self.batch[1])
        self.check_refused(loss + self.model.layer.weight.square().sum(), match="beside its clipped sum")

    def test_eval_mode_forward(self):
        self.model.eval()
        loss = nn.functional.cross_entropy(self.model(self.batch[0]), self.batch[1])
        self.model.train()
        self.check_refused(loss, match="eval mode")

    def test_hook_that_changes_the_gradient(self):
        handle = self.model.layer.bias.register_hook(lambda g: g * 2)
        loss = nn.functional.cross_entropy(self.model(self.batch[0]), self.batch[1])
        with pytest.raises(LeakError, match=r"layer\.bias"):
            loss.backward()
        handle.remove()

    def test_numpy_round_trip(self):
        class Net(Penalized):
            def forward(self, x):
                return self.layer(torch.from_numpy(x.numpy().copy()))

        _, self.model, self.optimizer, self.loader = full_batch_of(Net())
        self.batch = next(iter(self.loader))
        loss = nn.functional.cross_entropy(self.model(self.batch[0]), self.batch[1])
        with pytest.raises(LeakError, match="NumPy"):
            loss.backward()

    def test_gradient_changed_after_backward(self):
        backward(self.model, self.batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
        with pytest.raises(PrivacyError, match="clip_grad_norm_"):
            self.optimizer.step()

    def test_a_failed_backward_is_not_mended_by_a_good_one(self):
        x, y = self.batch
        backward(self.model, (x[:12], y[:12]))
        leak = nn.functional.linear(x, self.model.layer.weight).sum()
        with pytest.raises(LeakError):
            leak.backward()
        backward(self.model, (x[12:], y[12:]))
        with pytest.raises(PrivacyError, match="last backward"):
            self.optimizer.step()

    def test_gradient_assigned_by_hand(self):
        backward(self.model, self.batch)
        self.model.layer.weight.grad = torch.ones_like(self.model.layer.weight)
        with pytest.raises(PrivacyError, match="assignment"):
            self.optimizer.step()


def full_batch_of(model, **changes):
    parts = make_parts(batch_size=RECORDS, model=model)
    return make_private(parts, **changes)


class TestPasses:
    def test_second_backward_over_one_forward(self):
        _, model, optimizer, loader = full_batch()
        x, y = next(iter(loader))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        with pytest.raises(SecondBackwardError, match="Sum the losses"):
            loss.backward()
        optimizer.zero_grad()
        backward(model, (x, y))
        optimizer.step()

    def test_two_forwards_two_backwards(self):
        _, model, _, loader = full_batch()
        x, y = next(iter(loader))
        first, second = (nn.functional.cross_entropy(model(x), y) for _ in range(2))
        first.backward()
        with pytest.raises(SecondBackwardError, match="Sum the losses"):
            second.backward()

    def test_two_sizes_in_one_backward(self):
        _, model, _, loader = full_batch()
        x, _ = next(iter(loader))
        loss = model(x).sum() + model(x[:5]).sum()
        with pytest.raises(SecondBackwardError, match="different sizes"):
            loss.backward()

    def test_create_graph_is_refused(self):
        _, model, _, loader = full_batch()
        x, _ = next(iter(loader))
        x = x.clone().requires_grad_()
        with pytest.raises(NoRuleError, match="create_graph"):
            torch.autograd.grad(model(x).sum(), x, create_graph=True)

    def test_new_parameter_after_make_private(self):
        _, model, _, loader = full_batch()
        model[2] = nn.Linear(7, CLASSES)
        with pytest.raises(PrivacyError, match="was not a parameter of the model"):
            model(next(iter(loader))[0])

    @pytest.mark.parametrize("retain", [False, True])
    @pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
    def test_saliency_leaves_no_trace(self, mode, retain):
        expected = self._sums(mode, saliency=False, retain=retain)
        found = self._sums(mode, saliency=True, retain=retain)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # ghost's second way sums in another order

    def _sums(self, mode, *, saliency, retain):
        criterion = {"criterion": nn.CrossEntropyLoss()} if mode == "ghost" else {}
        _, model, _, loader, *rest = full_batch(grad_sample_mode=mode, **criterion)
        loss_fn = rest[0] if rest else nn.CrossEntropyLoss()
        x, y = next(iter(loader))
        if saliency:
            probe = x.clone().requires_grad_()
            out = model(probe)
            (g,) = torch.autograd.grad(out.sum(), probe, retain_graph=retain)
            assert g.abs().sum() > 0
            model.eval()
            torch.autograd.grad(model(probe).sum(), probe)
            model.train()
            probe.grad = None
            model(probe).sum().backward(inputs=[probe])
            model(x)  # and a forward that nobody differentiates
            with torch.no_grad():
                model(x)
        loss_fn(model(x), y).backward()
        return [p.grad.clone() for p in model.parameters()]

    def test_saliency_after_the_training_backward(self):
        _, model, optimizer, loader = full_batch()
        x, y = next(iter(loader))
        x = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        sums = [p.grad.clone() for p in model.parameters()]
        torch.autograd.grad(loss, x)
        assert all(torch.equal(a, p.grad) for a, p in zip(sums, model.parameters(), strict=True))
        optimizer.step()

    def test_evaluation_is_not_captured(self):
        _, model, _, loader = full_batch()
        x, _ = next(iter(loader))
        model.eval()
        assert "Carrier" not in str(model(x).grad_fn.next_functions)
        assert type(model(x).grad_fn).__name__ == "AddmmBackward0"
        model.train()
        with torch.no_grad():
            assert model(x).grad_fn is None

    def test_unused_parameters_are_named_once(self):
        class Net(Penalized):
            def __init__(self):
                super().__init__()
                self.spare = nn.Linear(2, 2)

        _, model, optimizer, loader = full_batch_of(Net(), noise_multiplier=1.0)
        before = model.spare.weight.detach().clone()
        backward(model, next(iter(loader)))
        with pytest.warns(UserWarning, match=r"spare\.weight, spare\.bias"):
            optimizer.step()
        assert not torch.equal(before, model.spare.weight)  # it got noise all the same
        optimizer.zero_grad()
        backward(model, next(iter(loader)))
        optimizer.step()  # warnings are errors here: it is not said again

    def test_frozen_and_unfrozen_between_steps(self):
        _, model, optimizer, loader = full_batch()
        for frozen in (True, False):
            model[0].requires_grad_(not frozen)
            optimizer.zero_grad()
            backward(model, next(iter(loader)))
            assert (model[0].weight.grad is None) is frozen
            before = model[0].weight.detach().clone()
            optimizer.step()
            assert torch.equal(before, model[0].weight) is frozen

    def test_parameters_outside_the_optimizer_are_constants(self):
        parts = make_parts(batch_size=RECORDS)
        parts.optimizer = torch.optim.SGD(parts.module[2].parameters(), lr=0.1)
        engine, model, optimizer, loader = make_private(parts)
        backward(model, next(iter(loader)))
        assert model[0].weight.grad is None
        assert engine.stats.norms.shape == (RECORDS,)
        optimizer.step()


class TestNoiseSource:
    def released(self, engine):
        _, model, optimizer, loader = make_private(make_parts(batch_size=RECORDS), engine, noise_multiplier=1.0)
        torch.manual_seed(3)
        backward(model, next(iter(loader)))
        optimizer.step()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def test_the_default_is_cryptographic_and_follows_no_seed(self):
        one, other = PrivacyEngine(), PrivacyEngine()
        assert not torch.equal(self.released(one), self.released(other))
        assert "AES" in one.noise_source

    def test_without_secure_mode_it_follows_torchs_seed_and_says_so(self):
        one, other = PrivacyEngine(secure_mode=False), PrivacyEngine(secure_mode=False)
        torch.testing.assert_close(self.released(one), self.released(other))
        assert "reproducible" in one.noise_source


class TestStats:
    def test_stats_describe_the_last_backward(self):
        engine, model, _, loader = full_batch(max_grad_norm=0.5)
        assert engine.stats is None
        x, y = next(iter(loader))
        backward(model, (x, y))
        stats = engine.stats
        assert stats.samples == RECORDS
        assert stats.nonfinite == 0
        assert stats.fraction_clipped == float((stats.norms > 0.5).double().mean())
        assert stats.quantiles[0.0] == float(stats.norms.min())
        assert stats.quantiles[1.0] == float(stats.norms.max())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
    def test_a_sample_that_is_not_finite_contributes_nothing(self, mode, bad):
        criterion = {"criterion": nn.CrossEntropyLoss()} if mode == "ghost" else {}
        engine, model, _, loader, *rest = full_batch(grad_sample_mode=mode, **criterion)
        loss_fn = rest[0] if rest else nn.CrossEntropyLoss()
        x, y = next(iter(loader))
        x = x.clone()
        x[3] = bad
        loss_fn(model(x), y).backward()
        found = [p.grad.clone() for p in model.parameters()]
        assert engine.stats.nonfinite == 1
        model.zero_grad()
        keep = [i for i in range(RECORDS) if i != 3]
        loss_fn(model(x[keep]), y[keep]).backward()
        for a, p in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-7)


class TestGradSamples:
    @pytest.mark.parametrize("mode", ["hooks", "ew"])
    def test_whole_per_sample_gradients_are_left(self, mode):
        _, model, _, loader = full_batch(grad_sample_mode=mode)
        x, y = next(iter(loader))
        backward(model, (x, y))
        plain = copy.deepcopy(model)
        for i in range(RECORDS):
            plain.zero_grad()
            nn.functional.cross_entropy(plain(x[i : i + 1]), y[i : i + 1]).backward()
            for p, q in zip(model.parameters(), plain.parameters(), strict=True):
                assert p.grad_sample.shape == (RECORDS, *p.shape)
                torch.testing.assert_close(p.grad_sample[i], q.grad)


class TestEmptyBatches:
    @pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
    def test_an_empty_batch_is_a_noise_only_step(self, mode):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(FEATURES, CLASSES)

            def forward(self, x):
                # -1 cannot be inferred from an empty tensor
                return self.layer(x.view(x.shape[0], -1))

        criterion = {"criterion": nn.CrossEntropyLoss()} if mode == "ghost" else {}
        engine, model, optimizer, loader, *rest = full_batch_of(Net(), grad_sample_mode=mode, **criterion)
        loss_fn = rest[0] if rest else nn.CrossEntropyLoss()
        next(iter(loader))
        loss_fn(model(torch.empty(0, FEATURES)), torch.empty(0, dtype=torch.long)).backward()
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
        assert engine.stats.samples == 0
        if mode == "hooks":
            assert model.layer.weight.grad_sample.shape == (0, CLASSES, FEATURES)
        optimizer.step()
        assert engine.accountant.steps == 1

    def test_small_rates_draw_empty_batches_in_an_ordinary_loop(self):
        parts = make_parts(batch_size=1)
        engine, model, optimizer, loader = make_private(parts, noise_multiplier=1.0)
        sizes = []
        for _ in range(2):
            for x, y in loader:
                sizes.append(len(x))
                optimizer.zero_grad()
                backward(model, (x, y))
                optimizer.step()
        assert engine.accountant.steps == len(sizes) == 2 * RECORDS
        assert 0 in sizes  # at rate 1/24 all of 48 batches are non-empty with probability 3e-10
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


class TestAccumulation:
    @pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
    @pytest.mark.parametrize("how", ["by hand", "manager"])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_accumulated_equals_one_big_batch(self, mode, how, reduction):
        big = self._train(mode, None, reduction)
        small = self._train(mode, how, reduction)
        for a, b in zip(big, small, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)

    def _train(self, mode, how, reduction):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        changes = {"grad_sample_mode": mode, "loss_reduction": reduction, "max_grad_norm": 0.3}
        if mode == "ghost":
            changes["criterion"] = loss
        _, model, optimizer, loader, *rest = full_batch(**changes)
        loss = rest[0] if rest else loss
        if how == "manager":
            with BatchMemoryManager(data_loader=loader, max_physical_batch_size=7, optimizer=optimizer) as batches:
                for _ in range(3):
                    for x, y in batches:
                        optimizer.zero_grad()
                        loss(model(x), y).backward()
                        optimizer.step()
        else:
            for _ in range(3):
                for x, y in loader:
                    optimizer.zero_grad()
                    pieces = [slice(0, 5), slice(5, 16), slice(16, RECORDS)] if how else [slice(None)]
                    for piece in pieces:
                        loss(model(x[piece]), y[piece]).backward()
                    optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    def test_leaving_the_manager_midway_discards(self):
        engine, model, optimizer, loader = full_batch()
        before = [p.detach().clone() for p in model.parameters()]
        with (
            pytest.warns(RuntimeWarning, match="middle of a logical batch"),
            BatchMemoryManager(data_loader=loader, max_physical_batch_size=7, optimizer=optimizer) as batches,
        ):
            for batch in batches:
                optimizer.zero_grad()
                backward(model, batch)
                optimizer.step()
                break
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert engine.accountant.steps == 0
        assert all(p.grad is None for p in model.parameters())
        backward(model, next(iter(loader)))
        optimizer.step()
        assert engine.accountant.steps == 1

    def test_two_draws_in_one_release_are_accounted_together(self):
        engine, model, optimizer, loader = make_private(noise_multiplier=1.0)
        draws = iter(loader)
        optimizer.zero_grad()
        backward(model, next(draws))
        backward(model, next(draws))
        optimizer.step()
        ((release, count),) = engine.accountant.history
        assert (release.draws, count) == (2, 1)


class TestOwnBatches:
    def test_no_amplification_is_claimed_and_it_says_so(self):
        engine, model, optimizer, loader = make_private(noise_multiplier=1.0, poisson_sampling=False)
        train(model, optimizer, loader, epochs=2)
        # Disjoint batches: an epoch costs one Gaussian mechanism, and two epochs two.
        assert engine.accountant.steps == 6
        expected = epsilon(noise_multiplier=1.0, sample_rate=1.0, steps=2, delta=1e-5)
        assert engine.get_epsilon(1e-5) == pytest.approx(expected, rel=1e-6)
        assert engine.accountant.adjacency == "zero-out-one"
        assert "amplification" in engine.plan.sampling.description

    def test_calibration_of_own_batches(self):
        engine = PrivacyEngine()
        parts = make_parts()
        model, optimizer, loader = engine.make_private_with_epsilon(
            **vars(parts), target_epsilon=4.0, target_delta=1e-5, epochs=2, max_grad_norm=1.0, poisson_sampling=False
        )
        train(model, optimizer, loader, epochs=2)
        assert 3.99 < engine.get_epsilon(1e-5) <= 4.0


class TestCalibration:
    @pytest.mark.parametrize("accountant", ["pld", "prv", "rdp"])
    @pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 9}])
    def test_the_planned_run_ends_at_or_just_below_the_target(self, accountant, length):
        engine = PrivacyEngine(accountant=accountant)
        model, optimizer, loader = engine.make_private_with_epsilon(
            **vars(make_parts()), target_epsilon=2.0, target_delta=1e-5, max_grad_norm=1.0, **length
        )
        train(model, optimizer, loader, epochs=3)
        assert 2.0 * (1 - 1e-3) <= engine.get_epsilon(1e-5) <= 2.0

    def test_spent_budget_counts(self):
        engine, model, optimizer, loader = make_private(noise_multiplier=3.0)
        train(model, optimizer, loader, epochs=1)
        engine.detach()
        _, _, loader = engine.make_private_with_epsilon(
            **vars(make_parts()), target_epsilon=2.0, target_delta=1e-5, max_grad_norm=1.0, epochs=1
        )
        fresh = PrivacyEngine()
        fresh.make_private_with_epsilon(
            **vars(make_parts()), target_epsilon=2.0, target_delta=1e-5, max_grad_norm=1.0, epochs=1
        )
        assert engine.noise_multiplier > fresh.noise_multiplier

    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"epochs": 1, "steps": 1},
            {"epochs": 1.5},
            {"steps": 0},
            {"epochs": 1, "target_epsilon": -1.0},
            {"epochs": 1, "target_delta": 1.0},
        ],
    )
    def test_wrong_plans_are_refused_before_anything_is_touched(self, wrong):
        parts = make_parts()
        settings = {"target_epsilon": 2.0, "target_delta": 1e-5, "max_grad_norm": 1.0} | wrong
        with pytest.raises(ConfigurationError):
            PrivacyEngine().make_private_with_epsilon(**vars(parts), **settings)
        assert "forward" not in parts.module.__dict__


class TestAdvice:
    def test_training_past_the_plan(self):
        engine = PrivacyEngine()
        model, optimizer, loader = engine.make_private_with_epsilon(
            **vars(make_parts()), target_epsilon=2.0, target_delta=1e-5, max_grad_norm=1.0, steps=2
        )
        batches = iter(loader)
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, next(batches))
            optimizer.step()
        optimizer.zero_grad()
        backward(model, next(batches))
        with pytest.warns(UserWarning, match="planned 2 steps are done"):
            optimizer.step()
        assert engine.get_epsilon(1e-5) > 2.0

    def test_a_delta_at_which_a_whole_record_may_leak(self):
        with pytest.warns(UserWarning, match="well below one over the number of records"):
            PrivacyEngine().make_private_with_epsilon(
                **vars(make_parts()), target_epsilon=2.0, target_delta=0.1, max_grad_norm=1.0, steps=2
            )

    def test_forgotten_zero_grad(self):
        _, model, optimizer, loader = make_private()
        batches = iter(loader)
        backward(model, next(batches))
        optimizer.step()
        backward(model, next(batches))
        with pytest.raises(SamplingError, match="still in .grad"):
            optimizer.step()


class TestLossesInsideTheModel:
    class Net(nn.Module):
        def __init__(self, **settings):
            super().__init__()
            self.layer, self.settings = nn.Linear(FEATURES, CLASSES), settings

        def forward(self, x, y):
            return nn.functional.cross_entropy(self.layer(x).transpose(1, 2), y, **self.settings)

    @pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
    @pytest.mark.parametrize("settings", [{}, {"ignore_index": 0}, {"label_smoothing": 0.1}])
    def test_token_means_over_different_lengths_are_taken_per_sample(self, mode, settings):
        torch.manual_seed(0)
        x, y = torch.randn(4, 3, FEATURES).double(), torch.randint(1, CLASSES, (4, 3))
        model = self.Net(**settings).double()
        check_exactness(model, lambda m, b: m(*b), (x, y), grad_sample_mode=mode)  # nothing to say
        y[1, 2] = y[2, 0] = settings.get("ignore_index", -100)
        with pytest.warns(CoupledLossWarning, match="between 2 and 3.*own mean instead"):
            check_exactness(model, lambda m, b: m(*b), (x, y), grad_sample_mode=mode)

    def test_a_sample_without_tokens_contributes_nothing(self):
        _, model, *_ = make_private(make_parts(model=self.Net()))
        x, y = torch.randn(2, 3, FEATURES), torch.randint(0, CLASSES, (2, 3))
        y[0] = -100
        with pytest.warns(CoupledLossWarning, match="between 0 and 3"):
            loss = model(x, y)
        expected = nn.functional.cross_entropy(x[1] @ model.layer.weight.T + model.layer.bias, y[1]) / 2
        assert loss.item() == pytest.approx(expected.item())

    def test_the_number_of_tokens_of_the_whole_batch(self):
        class Net(self.Net):
            def forward(self, x, y, num_items_in_batch=None):
                return super().forward(x, y)

        _, model, *_ = make_private(make_parts(model=Net()))
        x, y = torch.randn(2, 3, FEATURES), torch.randint(0, CLASSES, (2, 3))
        with pytest.raises(MixingError, match="num_items_in_batch.*Leave it out"):
            model(x, y, num_items_in_batch=6)

    def test_class_weights(self):
        _, model, *_ = make_private(make_parts(model=self.Net(weight=torch.ones(CLASSES))))
        with pytest.raises(MixingError, match="class weights of the whole batch"):
            model(torch.randn(4, 3, FEATURES), torch.randint(0, CLASSES, (4, 3)))


class TestSchedules:
    def test_noise_schedule_is_recorded(self):
        engine, model, optimizer, loader = make_private(noise_multiplier=1.0)
        for noise, batch in zip((1.0, 2.0, 2.0), loader, strict=True):
            engine.noise_multiplier = noise
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        assert [(r.noise_multiplier, n) for r, n in engine.accountant.history] == [(1.0, 1), (2.0, 2)]

    def test_noise_covers_the_bound_that_was_in_force(self):
        engine, model, optimizer, loader = full_batch(noise_multiplier=0.0, max_grad_norm=1e-3)
        x, y = next(iter(loader))
        backward(model, (x, y))
        small = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        optimizer.zero_grad()
        engine.max_grad_norm = 2e-3
        backward(model, (x, y))
        large = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        torch.testing.assert_close(large, 2 * small)


def test_inner_optimizer_keeps_its_class_and_state():
    parts = make_parts()
    parts.optimizer = torch.optim.Adam(parts.module.parameters())
    _, _, optimizer, _ = make_private(parts)
    assert isinstance(optimizer, PrivateOptimizer)
    assert optimizer.inner is parts.optimizer


@pytest.mark.filterwarnings("ignore:The loop was left in the middle of a logical batch:RuntimeWarning")
@pytest.mark.parametrize("ahead", [False, True])
def test_pieces_of_a_batch_that_are_read_ahead_are_refused(ahead):
    """A piece would be released with the next batch, and a record of both would count twice."""
    _, model, optimizer, loader = small_run.make(poisson_sampling=False)

    def run(pieces):
        held = None
        for piece in pieces:
            if not ahead:
                small_run.step(model, optimizer, piece)
            elif held is not None:
                small_run.step(model, optimizer, held)
            held = piece

    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=3, optimizer=optimizer) as pieces:
        if ahead:
            with pytest.raises(SamplingError, match="before the first was trained on: its records would be released"):
                run(pieces)
        else:
            run(pieces)
