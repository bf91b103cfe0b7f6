"""Private models under torch.compile: what is compiled, what is not, and what is refused."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.capture.compiled.private import Counted, assert_close, assert_exact, attach, gradients
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tacit import PrivacyEngine
from tacit.errors import (
    ConfigurationError,
    FallbackWarning,
    LayoutError,
    LeakError,
    MixingError,
    NoRuleError,
    PrivacyError,
    SecondBackwardError,
)
from tacit.testing import private_gradients, single_sample_loop

D, K = 4, 3


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch.manual_seed(0)
    torch.compiler.reset()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, K)).double()


def batch(samples: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, *(shape or (D,))).double(), torch.randint(0, K, (samples,))


def loss(model: Any, b: Any) -> Tensor:
    return F.cross_entropy(model(b[0]), b[1])


def compiled(model: nn.Module, backend: Any = "aot_eager", **options: Any) -> Any:
    return torch.compile(model, backend=backend, **{"fullgraph": True} | options)


class Of(nn.Module):
    """A module with one linear layer, a weight ``(D,)`` and a forward of the test's own."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(D, K)
        self.scale = nn.Parameter(torch.rand(D) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def of(function: Any) -> nn.Module:
    return Of(function).double()


class TestOrder:
    def test_compiled_before_and_passed_in(self):
        model = mlp()
        b, plain = batch(5), copy.deepcopy(model)
        wrapped = compiled(model)
        engine = PrivacyEngine()
        made, *_ = engine.make_private(
            module=wrapped,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(8)), batch_size=4),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
        )
        assert made is wrapped
        found = gradients(model, wrapped, loss, b)
        assert_close(found, private_gradients(plain, loss, b, max_grad_norm=1.0)[1], 1e-9)

    @pytest.mark.parametrize("fullgraph", [True, False])
    def test_compiled_before_and_the_original_passed_in(self, fullgraph):
        """A module of torch's own is then entered from inside a graph, which breaks there, or says why it cannot."""
        for model in (mlp(), of(lambda m, x: m.linear(x * m.scale))):
            plain, b = copy.deepcopy(model), batch(5)
            backend = Counted()
            wrapped = compiled(model, backend, fullgraph=fullgraph)
            attach(model)
            if fullgraph and isinstance(model, nn.Sequential):
                with pytest.raises(torch._dynamo.exc.Unsupported, match="pass the compiled model to make_private"):
                    wrapped(b[0])
                continue
            found = gradients(model, wrapped, loss, b)
            assert_close(found, private_gradients(plain, loss, b, max_grad_norm=1.0)[1], 1e-9)
            assert backend.graphs == 1

    @pytest.mark.parametrize("before", [True, False])
    def test_compile_in_place(self, before):
        model, backend = mlp(), Counted()
        plain, b = copy.deepcopy(model), batch(5)
        if before:
            model.compile(backend=backend, fullgraph=True)
        attach(model)
        if not before:
            model.compile(backend=backend, fullgraph=True)
        found = gradients(model, model, loss, b)
        assert_close(found, private_gradients(plain, loss, b, max_grad_norm=1.0)[1], 1e-9)
        assert backend.graphs == 1

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
    def test_within_a_compiled_function(self):
        model, b = mlp(), batch(5)
        plain = copy.deepcopy(model)
        attach(model)
        step = torch.compile(lambda x, y: F.cross_entropy(model(x) * 1.0, y), backend="aot_eager")
        found = gradients(model, lambda x: None, lambda _m, b: step(*b), b)
        assert_close(found, private_gradients(plain, loss, b, max_grad_norm=1.0)[1], 1e-9)

    def test_detach_leaves_a_model_that_compiles_plainly(self):
        model, b = mlp(), batch(5)
        plain = copy.deepcopy(model)
        wrapped = compiled(model)
        engine = attach(wrapped)
        gradients(model, wrapped, loss, b)
        engine.detach()
        right = gradients(plain, plain, loss, b)
        assert_close(gradients(model, wrapped, loss, b), right, 1e-12)
        assert_close(gradients(model, compiled(model), loss, b), right, 1e-12)
        assert all("forward" not in m.__dict__ for m in model.modules())


class TestBatches:
    def test_one_graph_for_all_sizes_but_the_first(self):
        model, backend = mlp(), Counted()
        assert_exact(model, loss, [batch(n) for n in (6, 5, 7, 3, D, 1, 9, 2)], backend=backend)
        assert backend.graphs == 2

    def test_an_empty_batch_gives_zeros(self):
        model = mlp()
        attach(model)
        wrapped = compiled(model)
        for samples in (0, 4, 0):
            found = gradients(model, wrapped, lambda m, b: m(b[0]).sum(), batch(samples))
            assert len(found) == 6
            assert any(bool(g.any()) for g in found.values()) == (samples > 0)

    def test_two_backwards_before_a_step(self):
        model = mlp()
        one, two = batch(5), batch(3)
        right = [single_sample_loop(model, loss, b, max_grad_norm=0.5).sums for b in (one, two)]
        attach(model, 0.5)
        wrapped = compiled(model)
        loss(wrapped, one).backward()
        loss(wrapped, two).backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        assert_close(found, {name: right[0][name] + right[1][name] for name in right[0]}, 1e-9)

    def test_two_forwards_are_joined_before_the_norm(self):
        def both(m: Any, b: Any) -> Tensor:
            return F.mse_loss(m(b[0]), m(b[0] * 2 - 1).detach() + m(b[0].flip(1)))

        assert_exact(mlp(), both, [batch(5), batch(3)])

    def test_units_of_several_rows(self):
        model, b = mlp(), batch(6)
        plain = copy.deepcopy(model)
        results = []
        for each in (model, plain):
            engine = attach(each)
            with engine.samples(torch.tensor([0, 0, 1, 2, 2, 2])):
                results.append(gradients(each, compiled(each) if each is model else each, loss, b))
        assert_close(results[0], results[1], 1e-9)

    @pytest.mark.parametrize("mode", ["hooks", "ghost"])
    def test_other_modes_give_the_same_numbers(self, mode):
        model, b = mlp(), batch(5)
        right = single_sample_loop(model, loss, b, max_grad_norm=0.5).sums
        engine = attach(model, 0.5, grad_sample_mode=mode)
        criterion = engine._attached.criterion(nn.CrossEntropyLoss()) if mode == "ghost" else F.cross_entropy
        found = gradients(model, compiled(model), lambda m, b: criterion(m(b[0]), b[1]), b)
        assert_close(found, dict(right), 1e-9)

    def test_functorch_mode_is_refused(self):
        model = mlp()
        attach(model, grad_sample_mode="functorch")
        with pytest.raises(ConfigurationError, match="functorch"):
            compiled(model)(batch(5)[0])

    def test_the_gradient_of_an_input(self):
        model = mlp()
        plain, x = copy.deepcopy(model), batch(5)[0]
        attach(model)
        grads = []
        for call in (compiled(model), plain):
            leaf = x.clone().requires_grad_()
            call(leaf).sum().backward()
            grads.append(leaf.grad)
        assert torch.allclose(grads[0], grads[1], atol=1e-12)

    def test_evaluation_is_compiled_as_it_is(self):
        model, backend = mlp(), Counted()
        plain = copy.deepcopy(model)
        attach(model)
        wrapped, x = compiled(model, backend), batch(5)[0]
        wrapped(x).sum().backward()
        with torch.no_grad():
            assert torch.equal(wrapped(x), plain(x))
        model.eval()
        with torch.no_grad():
            assert torch.equal(wrapped(x), plain(x))
        model.train()
        wrapped(x).sum().backward()
        assert backend.graphs == 2


class TestParameters:
    def test_derived_ones(self):
        def function(m: Any, x: Tensor) -> Tensor:
            weight = m.linear.weight * m.scale.exp() / m.linear.weight.norm(dim=1, keepdim=True)
            return F.linear(x, weight.t().t(), m.linear.bias)

        assert_exact(of(function), loss, [batch(5), batch(D)])

    def test_a_frozen_parameter(self):
        model = mlp()
        model[0].weight.requires_grad_(False)
        assert_exact(model, loss, [batch(5)])
        assert model[0].weight.grad is None

    def test_one_that_is_not_used(self):
        model = of(lambda m, x: x * m.scale.detach())
        attach(model)
        compiled(model)(batch(5)[0].requires_grad_()).sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())

    def test_one_that_the_optimizer_does_not_step(self):
        model = mlp()
        engine = PrivacyEngine()
        engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model[3].parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(8)), batch_size=4),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
        )
        assert set(gradients(model, compiled(model), loss, batch(5))) == {"3.weight", "3.bias"}

    def test_a_parameter_put_in_the_place_of_another(self):
        model = mlp()
        attach(model)
        wrapped, b = compiled(model), batch(5)
        gradients(model, wrapped, loss, b)
        model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight))
        with pytest.raises(PrivacyError, match="trainable tensor"):
            wrapped(b[0])

    def test_checkpoints_are_opened(self):
        def function(m: Any, x: Tensor) -> Tensor:
            return checkpoint(lambda h: m.linear(h * m.scale), x, use_reentrant=False)

        assert_exact(of(function), loss, [batch(5), batch(3)])


class TestRefusals:
    def refused(self, function: Any, error: type[Exception], match: str, x: Tensor | None = None) -> None:
        model = of(function)
        attach(model)
        with pytest.raises(error, match=match):
            compiled(model)(batch(5)[0] if x is None else x)

    def test_a_weight_in_the_loss(self):
        model, b = mlp(), batch(5)
        attach(model)
        out = compiled(model)(b[0])
        with pytest.raises(LeakError, match="unclipped"):
            (F.cross_entropy(out, b[1]) + model[0].weight.square().sum()).backward()

    def test_a_function_without_a_rule(self):
        def function(m: Any, x: Tensor) -> Tensor:
            return m.linear(torch.special.zeta(x.abs() + 2, m.scale))

        self.refused(function, NoRuleError, "special_zeta.*`scale`.*the model, Of.forward")

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    def test_an_operator_with_a_graph_inside(self):
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
                return x * w

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Any:
                return g, g.sum(0)

        self.refused(lambda m, x: m.linear(Double.apply(x, m.scale)), NoRuleError, "autograd_function_apply")

    def test_a_penalty_among_the_outputs(self):
        self.refused(lambda m, x: (m.linear(x), m.scale.square().sum()), LeakError, "`?scale")

    def test_statistics_of_the_batch(self):
        self.refused(lambda m, x: m.linear((x - x.mean(0)) * m.scale), LayoutError, "lost its batch.*in `mean`")

    def test_the_batch_in_a_buffer(self):
        def function(m: Any, x: Tensor) -> Tensor:
            m.seen.copy_(x.detach()[0])
            return m.linear(x)

        model = of(function)
        model.register_buffer("seen", torch.zeros(D).double())
        attach(model)
        with pytest.raises(MixingError, match="without noise"):
            compiled(model)(batch(5)[0])

    def test_a_choice_by_value(self):
        def function(m: Any, x: Tensor) -> Tensor:
            return m.linear(x[x.sum(1) > 0])

        self.refused(function, NoRuleError, "what a graph does not know")

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
    def test_a_tensor_kept_from_another_batch(self):
        kept: list[Tensor] = []
        model = of(lambda m, x: m.linear(x) + kept[0] if kept else m.linear(x))
        attach(model)
        wrapped = compiled(model)
        kept.append(wrapped(batch(5)[0]))
        with pytest.raises(NoRuleError, match="not among its arguments"):
            wrapped(batch(5)[0])

    def test_the_model_run_by_other_means_within_a_graph(self):
        """Nothing may call a module while its entrance is away."""
        model = mlp()
        attach(model)
        compiled(model)(batch(5)[0])
        session = model.__dict__["forward"]._keeper
        session._regions.running = True
        with pytest.raises(PrivacyError, match="outside the graph"):
            model(batch(5)[0])

    def test_a_second_backward(self):
        model, b = mlp(), batch(5)
        attach(model)
        value = loss(compiled(model), b)
        value.backward(retain_graph=True)
        with pytest.raises(SecondBackwardError):
            value.backward()

    def test_second_derivatives(self):
        model, b = mlp(), batch(5)
        attach(model)
        x = b[0].requires_grad_()
        with pytest.raises(RuntimeError):
            torch.autograd.grad(compiled(model)(x).sum(), x, create_graph=True)[0].sum().backward()


class TestFallback:
    """Without fullgraph=True a model that cannot be one graph runs uncompiled, and says so."""

    @pytest.mark.parametrize(
        "function",
        [
            lambda m, x: (torch._dynamo.graph_break(), m.linear(x * m.scale))[1],
            lambda m, x: m.linear(x * m.scale) if x.sum() > 0 else m.linear(x) * 2,
            lambda m, x: m.linear(torch.special.zeta(x.abs() + 2, m.scale.detach()) * m.scale),
        ],
        ids=["a break", "a branch on values", "nothing"],
    )
    def test_the_numbers_are_right(self, function, request):
        model, b = of(function), batch(5)
        right = private_gradients(model, loss, b, max_grad_norm=1.0)[1]
        attach(model)
        wrapped = compiled(model, fullgraph=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FallbackWarning)
            for _ in range(2):
                assert_close(gradients(model, wrapped, loss, b), right, 1e-9)
        said = [w for w in caught if issubclass(w.category, FallbackWarning)]
        assert len(said) == (0 if "nothing" in request.node.callspec.id else 1)

    def test_too_many_graphs(self):
        model = mlp()
        plain = copy.deepcopy(model)
        attach(model)
        wrapped = compiled(model, fullgraph=False, dynamic=False)
        with torch._dynamo.config.patch(recompile_limit=2), pytest.warns(FallbackWarning, match="recompile_limit"):
            for samples in (5, 4, 3, 6):
                b = batch(samples)
                right = private_gradients(plain, loss, b, max_grad_norm=1.0)[1]
                assert_close(gradients(model, wrapped, loss, b), right, 1e-9)

    @pytest.mark.parametrize("fullgraph", [True, False])
    def test_a_part_compiled_by_itself(self, fullgraph):
        model, b = mlp(), batch(5)
        right = private_gradients(model, loss, b, max_grad_norm=1.0)[1]
        model[0] = compiled(model[0], fullgraph=fullgraph)
        attach(model)
        if fullgraph:
            with pytest.raises(ConfigurationError, match="compile the whole model"):
                model(b[0])
            return
        with pytest.warns(FallbackWarning, match="compile the whole model"):
            found = gradients(model, model, loss, b)
        assert_close({name.replace("_orig_mod.", ""): g for name, g in found.items()}, right, 1e-9)
