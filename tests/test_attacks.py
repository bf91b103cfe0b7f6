"""Ways around the guarantee that were found, and are closed: each is refused, or bounded."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import CheckpointError as RecomputationError
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine, PrivacyError
from tacit.errors import ConfigurationError, FallbackWarning, LeakError, MixingError, SamplingError, SecondBackwardError
from tacit.testing import check_exactness

RECORDS, D, K = 12, 5, 3


def run(model=None, *, batch_size=RECORDS, data=None, **changes):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, K))
    data = data or TensorDataset(torch.randn(RECORDS, D), torch.randint(0, K, (RECORDS,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = PrivacyEngine()
    settings = {"noise_multiplier": 0.0, "max_grad_norm": 1.0} | changes
    made = engine.make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(data, batch_size=batch_size), **settings
    )
    return engine, *made, optimizer


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


class TestRecordsThatCountSeveralTimes:
    def setup_method(self):
        self.engine, self.model, self.optimizer, self.loader, _ = run()
        self.x, self.y = next(iter(self.loader))

    def test_second_forward_and_backward(self):
        loss_of(self.model, self.x, self.y).backward()
        with pytest.raises(SamplingError, match="24 samples were differentiated"):
            loss_of(self.model, self.x + 0.01, self.y).backward()
        self.optimizer.zero_grad()
        loss_of(self.model, self.x, self.y).backward()
        self.optimizer.step()

    def test_augmented_copies_in_one_batch(self):
        with pytest.raises(SamplingError, match="augmented copies"):
            loss_of(self.model, torch.cat([self.x, self.x * 1.1]), torch.cat([self.y, self.y])).backward()

    def test_rows_of_one_record(self):
        with pytest.raises(SamplingError, match="rows of one record"):
            self.model(self.x.repeat_interleave(4, 0)).sum().backward()

    def test_pieces_of_a_batch_in_one_backward(self):
        losses = [loss_of(self.model, a, b) for a, b in zip(self.x.chunk(2), self.y.chunk(2), strict=True)]
        with pytest.raises(SecondBackwardError, match="pieces of one batch"):
            sum(losses).backward()

    def test_two_draws_in_one_backward(self):
        other = next(iter(self.loader))
        loss = loss_of(self.model, self.x, self.y)
        again = next(iter(self.loader))
        assert len(other[0]) == len(again[0])
        with pytest.raises(SecondBackwardError, match="cannot be matched"):
            (loss + loss_of(self.model, *again)).backward()

    def test_generated_rows_are_no_records(self):
        loss_of(self.model, self.x, self.y).backward()
        with self.engine.synthetic():
            loss_of(self.model, torch.randn(30, D), torch.zeros(30, dtype=torch.long)).backward()
        self.optimizer.step()
        assert self.engine.accountant.steps == 1

    def test_rows_that_were_seen_in_this_step(self):
        loss_of(self.model, self.x[:3], self.y[:3]).backward()
        loss_of(self.model, self.x[3:6], self.y[3:6]).backward()
        with pytest.raises(SamplingError, match="differentiated already"):
            loss_of(self.model, self.x[2:4], self.y[2:4]).backward()
        self.optimizer.zero_grad()
        loss_of(self.model, self.x[:3], self.y[:3]).backward()
        loss_of(self.model, self.x[3:], self.y[3:]).backward()
        self.optimizer.step()

    def test_positions_first_in_pieces(self):
        class Swapped(Positions):
            def forward(self, positions, x):
                return super().forward(x, positions)

        data = TensorDataset(torch.randn(RECORDS, 2, D), torch.randint(0, K, (RECORDS,)))
        _, model, _, loader, _ = run(Swapped(2), data=data)
        x, _ = next(iter(loader))
        with pytest.raises(ConfigurationError, match="which of them is the batch"):
            model(torch.arange(2), x[:3])


class Positions(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, D))
        self.head = nn.Linear(D, K)

    def forward(self, x, positions):
        return self.head((x + self.table[positions]).mean(1))


class TestInputsThatAreNoBatch:
    @pytest.mark.parametrize("batch_size", [1, 4])
    @pytest.mark.parametrize("length", [3, 7])
    def test_positions_beside_the_batch(self, batch_size, length):
        data = TensorDataset(torch.randn(batch_size, length, D), torch.randint(0, K, (batch_size,)))
        engine, model, _, loader, _ = run(Positions(length), batch_size=batch_size, data=data)
        x, y = next(iter(loader))
        plain = copy.deepcopy(model)
        F.cross_entropy(model(x, torch.arange(length)), y).backward()
        assert engine.stats.samples == batch_size
        norms = []
        for i in range(batch_size):
            plain.zero_grad()
            F.cross_entropy(plain(x[i : i + 1], torch.arange(length)), y[i : i + 1]).backward()
            norms.append(torch.stack([p.grad.norm() for p in plain.parameters()]).norm())
        torch.testing.assert_close(engine.stats.norms.float(), torch.stack(norms))

    def test_positions_of_just_the_batch_size_are_refused_at_first_and_known_later(self):
        data = TensorDataset(torch.randn(4, 4, D), torch.randint(0, K, (4,)))
        for known in (False, True):
            _, model, _, loader, _ = run(Positions(4), batch_size=4, data=data)
            if known:
                model(torch.randn(3, 4, D), torch.arange(4))  # another size shows that positions are no batch
            x, y = next(iter(loader))
            if known:
                F.cross_entropy(model(x, torch.arange(4)), y).backward()
            else:
                with pytest.raises(PrivacyError):
                    F.cross_entropy(model(x, torch.arange(4)), y).backward()

    def test_the_batch_must_come_first(self):
        class Swapped(Positions):
            def forward(self, positions, x):
                return super().forward(x, positions)

        data = TensorDataset(torch.randn(4, 3, D), torch.randint(0, K, (4,)))
        _, model, _, loader, _ = run(Swapped(3), batch_size=4, data=data)
        with pytest.raises(ConfigurationError, match="Pass the batch first"):
            model(torch.arange(3), next(iter(loader))[0])

    def test_rows_written_to_other_samples(self):
        class Permuted(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(D, D), nn.Linear(D, K)

            def forward(self, x):
                h = self.first(x)
                out = torch.zeros_like(h)
                out[torch.arange(len(x) - 1, -1, -1)] = h
                return self.second(out)

        _, model, _, loader, _ = run(Permuted())
        with pytest.raises(PrivacyError, match="__setitem__"):
            model(next(iter(loader))[0])

    def test_mixing_in_the_output_is_refused(self):
        class Pairs(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Linear(D, K)

            def forward(self, x):
                z = self.embed(x)
                return z @ z.t()

        _, model, _, loader, _ = run(Pairs())
        with pytest.raises(MixingError, match="combines different samples"):
            model(next(iter(loader))[0])


class TestGradientsWithoutNoise:
    def test_frozen_between_backward_and_step(self):
        _, model, optimizer, loader, _ = run(noise_multiplier=1.0)
        before = model[0].weight.detach().clone()
        loss_of(model, *next(iter(loader))).backward()
        model[0].requires_grad_(False)
        optimizer.step()
        assert torch.equal(before, model[0].weight)
        assert model[0].weight.grad is None

    @pytest.mark.parametrize("change", [lambda g: g.data.mul_(100), lambda g: torch._foreach_mul_([g.detach()], 0.01)])
    def test_changes_that_leave_no_trace(self, change):
        _, model, optimizer, loader, _ = run()
        loss_of(model, *next(iter(loader))).backward()
        change(model[0].weight.grad)
        with pytest.raises(PrivacyError, match="was changed after"):
            optimizer.step()

    @pytest.mark.parametrize("managed", [True, False])
    def test_changes_between_two_pieces(self, managed):
        _, model, optimizer, loader, _ = run()

        def pieces():
            if managed:
                with BatchMemoryManager(data_loader=loader, max_physical_batch_size=6, optimizer=optimizer) as batches:
                    yield from batches
            else:
                x, y = next(iter(loader))
                yield from zip(x.split(6), y.split(6), strict=True)

        both = list(pieces()) if not managed else pieces()
        both = iter(both)
        x, y = next(both)
        loss_of(model, x, y).backward()
        if managed:
            optimizer.step()
        model[0].weight.grad.mul_(100)
        x, y = next(both)
        with pytest.raises(PrivacyError, match="was changed after"):
            loss_of(model, x, y).backward()
        with pytest.raises(PrivacyError, match="failed"):
            optimizer.step()
        if managed:
            with pytest.warns(RuntimeWarning, match="middle of a logical batch"):
                both.close()

    def test_grad_scaler(self):
        _, model, optimizer, loader, _ = run()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-10)
        x, y = next(iter(loader))
        scaler.scale(loss_of(model, x, y)).backward()
        with pytest.raises(PrivacyError, match="grad_scaler=scaler"):
            scaler.step(optimizer)

    def test_accumulation_hooks(self):
        model = nn.Linear(D, K)
        model.weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(100))
        with pytest.raises(PrivacyError, match="post-accumulate-grad hook"):
            run(model)
        _, model, _, loader, _ = run()
        batch = next(iter(loader))
        loss = loss_of(model, *batch)
        model[0].weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(100))
        with pytest.raises(PrivacyError, match="post-accumulate-grad hook"):
            loss.backward()

    def test_groups_added_to_the_original_optimizer(self):
        _, model, optimizer, loader, original = run()
        extra = nn.Linear(D, K)
        original.add_param_group({"params": extra.parameters()})
        (loss_of(model, *next(iter(loader))) + extra(torch.ones(D)).sum()).backward()
        with pytest.raises(PrivacyError, match="parameter groups have changed"):
            optimizer.step()

    def test_detach_leaves_no_pending_sum(self):
        engine, model, _, loader, _ = run()
        loss_of(model, *next(iter(loader))).backward()
        engine.detach()
        assert all(p.grad is None for p in model.parameters())

    def test_grad_samples_do_not_reach_a_file(self):
        _, model, optimizer, loader, _ = run(grad_sample_mode="hooks")
        loss_of(model, *next(iter(loader))).backward()
        assert model[0].weight.grad_sample.shape == (RECORDS, 6, D)
        optimizer.step()
        assert "grad_sample" not in model[0].weight.__dict__


class Remembering(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(D, K)
        self.register_buffer("average", torch.zeros(K))
        self.frozen = nn.Parameter(torch.zeros(K), requires_grad=False)
        self.how = how

    def forward(self, x):
        h = self.layer(x)
        with torch.no_grad():
            self.how(self, h.mean(0))
        return h


def reassign(module, value):
    module.average = 0.9 * module.average + value


WRITES = {
    "in place": lambda m, v: m.average.add_(v),
    "data": lambda m, v: m.average.data.mul_(0.9).add_(v),
    "slice": lambda m, v: m.average[:2].copy_(v[:2]),
    "item": lambda m, v: m.average.__setitem__(0, v[0]),
    "reassigned": reassign,
    "frozen parameter": lambda m, v: m.frozen.copy_(v),
    "data replaced": lambda m, v: setattr(m.average, "data", v),
    "foreach": lambda m, v: torch._foreach_add_([m.average], [v]),
    "out": lambda m, v: torch.add(v, 1, out=m.average),
}


@pytest.mark.parametrize("how", WRITES.values(), ids=WRITES)
def test_the_batch_is_not_written_into_what_is_saved(how):
    _, model, _, loader, _ = run(Remembering(how))
    with pytest.raises(MixingError, match="average|frozen"):
        model(next(iter(loader))[0])


class TestNumbers:
    def moved(self, make_model, loss_fn, rows, extra, c=1.0, device="cpu"):
        """How far the clipped sum moves when a sample is added, in units of C."""
        sums = []
        for batch in (rows, [torch.cat(pair) for pair in zip(rows, extra, strict=True)]):
            torch.manual_seed(0)
            model = make_model().to(device)
            _, model, _, _, _ = run(model, max_grad_norm=c, loss_reduction="sum")
            loss_fn(model, [value.to(device) for value in batch]).backward()
            sums.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
        return float((sums[1] - sums[0]).norm()) / c

    @pytest.mark.parametrize("size", [1e3, 1e5, 1e9])
    def test_terms_that_cancel_within_a_sample(self, size, device):
        def loss_fn(model, batch):
            h = model(batch[0])
            return (h[:, 0] - h[:, 1] - batch[1]).square().sum()

        rows = [torch.randn(8, 2, 4), torch.randn(8, 3)]
        extra = [torch.full((1, 2, 4), size) + torch.tensor([1.0, 2.0, 3.0, 4.0]) * size, torch.full((1, 3), size)]
        assert self.moved(lambda: nn.Linear(4, 3), loss_fn, rows, extra, device=device) <= 1 + 1e-4

    def test_embeddings_that_cancel(self):
        def loss_fn(model, batch):
            h = model(batch[0])
            return ((h[:, 0] - h[:, 1]).sum(1) - batch[1]).square().sum()

        rows = [torch.randint(0, 5, (8, 2)), torch.randn(8)]
        extra = [torch.tensor([[3, 3]]), torch.tensor([1e12])]
        assert self.moved(lambda: nn.Embedding(5, 4), loss_fn, rows, extra) <= 1 + 1e-4

    @pytest.mark.parametrize("length", [1, 8])
    def test_norms_that_would_underflow(self, length):
        def loss_fn(model, batch):
            return (model(batch[0]) * batch[1]).sum()

        rows = [torch.randn(4, length, 512), torch.randn(4, length, 2)]
        extra = [torch.full((1, length, 512), 2e-23), torch.full((1, length, 2), 1e19)]
        assert self.moved(lambda: nn.Linear(512, 2), loss_fn, rows, extra, c=1e-4) <= 1 + 1e-4

    @pytest.mark.parametrize("samples", [64, 1025])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_does_not_round_the_total(self, samples, dtype, device):
        def loss_fn(model, batch):
            with torch.autocast(device, dtype=dtype):
                return model(batch[0]).float().sum()

        rows, extra = [torch.ones(samples, 3, 16)], [torch.ones(1, 3, 16)]
        assert self.moved(lambda: nn.Linear(16, 8), loss_fn, rows, extra, device=device) <= 1 + 1e-3


def test_recomputation_outside_the_capture_is_never_taken_for_the_rule():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return checkpoint(lambda h: F.linear(h, self.second.weight), self.first(x), use_reentrant=False)

    data = TensorDataset(torch.randn(4, 4), torch.zeros(4))
    _, model, _, loader, _ = run(Block(), batch_size=4, data=data)
    with pytest.raises(RecomputationError):
        model(next(iter(loader))[0]).square().sum().backward()


MOVED = {
    "index_copy_": lambda h, order: h.new_zeros(h.shape).index_copy_(0, order, h),
    "index_put_": lambda h, order: h.new_zeros(h.shape).index_put_((order,), h),
    "embedding": lambda h, order: F.embedding(order, h),
    "matrix": lambda h, order: torch.linalg.matmul(torch.eye(len(h))[order], h),
    "msort": lambda h, order: torch.msort(h),
}


@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED)
def test_rows_that_are_moved_to_other_samples(move):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(D, D), nn.Linear(D, K)

        def forward(self, x):
            return self.second(move(self.first(x), torch.arange(len(x) - 1, -1, -1)))

    _, model, _, loader, _ = run(Net())
    with pytest.raises(PrivacyError):
        model(next(iter(loader))[0]).sum().backward()


def test_a_call_that_cannot_be_seen_on_a_residual_path():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(D, D), nn.Linear(D, K)

        def forward(self, x):
            return self.second(x + torch.vmap(torch.tanh)(self.first(x)))

    model = Net().double()
    x = torch.randn(6, D).double()
    with pytest.warns(FallbackWarning, match="could not be seen"):
        check_exactness(model, lambda m, b: m(b).square().sum(1).mean(), x)


def test_a_parameter_that_was_repeated_and_then_written_to():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.randn(1, 3, D))

        def forward(self, x):
            repeated = self.p.repeat(x.shape[0], 1, 1)
            repeated[:, 0] = 0
            return x + repeated

    torch.manual_seed(0)
    check_exactness(Net().double(), lambda m, b: m(b).square().mean(), torch.randn(6, 3, D).double())


def test_a_failed_backward_leaves_nothing_in_ghost_mode():
    _, model, optimizer, loader, criterion, _ = run(grad_sample_mode="ghost", criterion=nn.CrossEntropyLoss())
    x, y = next(iter(loader))
    loss = criterion(model(x), y)
    loss.register_hook(lambda g: g)
    handle = model[0].weight.register_hook(lambda g: g * 2)  # the guard stops this backward
    with pytest.raises(LeakError):
        loss.backward()
    handle.remove()
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    found = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    for a, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_clearing_gradients_within_a_logical_batch():
    _, model, optimizer, loader, _ = run()
    with (
        pytest.warns(RuntimeWarning, match="middle of a logical batch"),
        BatchMemoryManager(data_loader=loader, max_physical_batch_size=5, optimizer=optimizer) as batches,
    ):
        pieces = iter(batches)
        x, y = next(pieces)
        loss_of(model, x, y).backward()
        optimizer.step()
        model.zero_grad()
        x, y = next(pieces)
        with pytest.raises(PrivacyError, match="would miss their records"):
            loss_of(model, x, y).backward()


class TestOrdinaryCode:
    @pytest.mark.parametrize("samples", [1, 4])
    def test_losses_of_single_samples_inside_the_model(self, samples):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(D, K)

            def forward(self, x, y):
                return F.cross_entropy(self.layer(x), y, reduction="none")

        torch.manual_seed(0)
        batch = torch.randn(samples, D).double(), torch.randint(0, K, (samples,))
        check_exactness(Net().double(), lambda m, b: m(*b).mean(), batch)

    def test_values_that_are_only_logged_may_mix_samples(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(D, K)

            def forward(self, x):
                h = self.layer(x)
                return {"logits": h, "similarity": (h @ h.t()).mean().detach()}

        _, model, _, loader, _ = run(Net())
        model(next(iter(loader))[0])["logits"].sum().backward()
        assert model.layer.weight.grad.any()

    @pytest.mark.parametrize("samples", [0, 1, 2])
    def test_models_that_add_and_drop_dimensions_of_size_one(self, samples):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(D, K)

            def forward(self, x):
                return self.layer(x.unsqueeze(0).expand(2, -1, -1)).mean(0)

        _, model, _, loader, _ = run(Net())
        next(iter(loader))
        assert model(torch.randn(samples, D)).shape == (samples, K)

    def test_two_forwards_of_an_empty_batch(self):
        _, model, optimizer, loader, _ = run()
        next(iter(loader))
        empty = torch.empty(0, D)
        (model(empty).sum() + model(empty).sum()).backward()
        optimizer.step()
        assert all(not p.grad.any() for p in model.parameters())

    def test_a_model_that_changes_its_type(self):
        _, model, optimizer, loader, _ = run()
        x, y = next(iter(loader))
        loss_of(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.double()
        x, y = next(iter(loader))
        before = model[0].weight.detach().clone()
        loss_of(model, x.double(), y).backward()
        optimizer.step()
        assert not torch.equal(before, model[0].weight)

    def test_outputs_collected_in_a_constant(self):
        class Loop(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell, self.head = nn.Linear(D, D), nn.Linear(D, K)

            def forward(self, x):
                out = x.new_zeros(x.shape[0], 3, D)
                h = x
                for t in range(3):
                    h = torch.tanh(self.cell(h))
                    out[:, t] = h
                return self.head(out)

        for samples in (3, 5):
            torch.manual_seed(0)
            x = torch.randn(samples, D).double()
            check_exactness(Loop().double(), lambda m, b: m(b).square().mean(), x)

    def test_complex_rotation(self):
        class Rotary(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(4, 4), nn.Linear(4, K)

            def forward(self, x):
                z = torch.view_as_complex(self.first(x).reshape(*x.shape[:-1], 2, 2))
                angles = torch.outer(torch.arange(x.shape[1]).double(), torch.tensor([1.0, 0.1]).double())
                z = z * torch.polar(torch.ones_like(angles), angles)
                return self.second(torch.view_as_real(z).flatten(2))

        for samples in (3, 5):
            torch.manual_seed(0)
            x = torch.randn(samples, 3, 4).double()
            check_exactness(Rotary().double(), lambda m, b: m(b).square().mean(), x)
