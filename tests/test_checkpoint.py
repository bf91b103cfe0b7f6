"""Checkpoints load whole or not at all, and never behind what was spent."""

import shutil

import pytest
import torch
from tests import small_run
from tests.small_run import epoch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import CheckpointError, ConfigurationError, SamplingError

RECORDS, FEATURES, CLASSES = 12, 4, 3


def make(width=5, *, accountant="pld", seed=None, poisson=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, CLASSES))
    data = TensorDataset(torch.randn(RECORDS, FEATURES), torch.randint(0, CLASSES, (RECORDS,)))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    noise = None if seed is None else torch.Generator().manual_seed(seed + 1)
    engine = PrivacyEngine(accountant=accountant)
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        data_loader=DataLoader(data, batch_size=4, generator=generator),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        noise_generator=noise,
        poisson_sampling=poisson,
    )
    return engine, *made


@pytest.fixture(params=[False, True], ids=["file", "folder"])
def sharded(request):
    return request.param


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path, accountant, sharded):
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make(accountant=accountant, seed=3)
    epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    epoch(model, optimizer, loader)
    other, resumed, other_optimizer, other_loader = make(accountant=accountant, seed=99)
    other.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    assert other.accountant.steps == 3
    epoch(resumed, other_optimizer, other_loader)
    assert other.get_epsilon(1e-5) == engine.get_epsilon(1e-5)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)  # given generators were restored, so draws and noise are the same


def test_the_file_loads_with_weights_only_and_has_plain_keys(tmp_path):
    path = tmp_path / "run.pt"
    engine, model, optimizer, _ = make()
    engine.save_checkpoint(path, module=model, optimizer=optimizer)
    content = torch.load(path, weights_only=True)
    assert list(content["model"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert content["settings"]["noise_multiplier"] == 1.0
    assert content["generators"] == {"noise": {}, "loader": None}  # secret generators are never written
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


def unchanged(engine, model, optimizer, path, match):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = engine.accountant.steps
    with pytest.raises(CheckpointError, match=match):
        engine.load_checkpoint(path, module=model, optimizer=optimizer)
    assert engine.accountant.steps == steps
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_torn_foreign_and_missing_files(tmp_path):
    engine, model, optimizer, _ = make()
    whole = tmp_path / "whole.pt"
    engine.save_checkpoint(whole, module=model, optimizer=optimizer)
    torn = tmp_path / "torn.pt"
    torn.write_bytes(whole.read_bytes()[:-200])
    unchanged(engine, model, optimizer, torn, "cannot be read")
    torn.write_bytes(b"")
    unchanged(engine, model, optimizer, torn, "cannot be read")
    foreign = tmp_path / "foreign.pt"
    torch.save(model.state_dict(), foreign)
    unchanged(engine, model, optimizer, foreign, "not written by save_checkpoint")
    unchanged(engine, model, optimizer, tmp_path / "none.pt", "no checkpoint")
    content = torch.load(whole, weights_only=True)
    torch.save(content | {"version": 99}, foreign)
    unchanged(engine, model, optimizer, foreign, "format 99")
    torch.save(content | {"accountant": {"nonsense": 1}}, foreign)
    unchanged(engine, model, optimizer, foreign, ".")
    for lineage in (3, [["a"]], [["a", 0]], [[1, 1]]):
        torch.save(content | {"accountant": content["accountant"] | {"lineage": lineage}}, foreign)
        unchanged(engine, model, optimizer, foreign, "names, and how many releases")
    for part in ("model", "optimizer", "accountant", "settings", "generators"):
        torch.save(content | {part: None}, foreign)
        unchanged(engine, model, optimizer, foreign, "not written by save_checkpoint")


def test_another_model_or_optimizer(tmp_path, sharded):
    path = tmp_path / "run.pt"
    engine, model, optimizer, _ = make()
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    other, wide, wide_optimizer, _ = make(width=6)
    unchanged(other, wide, wide_optimizer, path, r"0\.weight has the shape")
    third, same, _, _ = make()
    half = torch.optim.Adam(same[0].parameters())
    unchanged(third, same, half, path, "does not fit")


def test_a_checkpoint_behind_what_was_spent(tmp_path, sharded):
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make()
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    epoch(model, optimizer, loader)
    unchanged(engine, model, optimizer, path, "forget spent budget")


def test_equal_releases_of_another_run_are_others(tmp_path, sharded):
    """Two runs of one program make equal releases: six of one do not have three of the other among them."""
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make()
    for _ in range(2):
        epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    other, resumed, other_optimizer, other_loader = make()
    epoch(resumed, other_optimizer, other_loader)
    unchanged(other, resumed, other_optimizer, path, "of another run.*forget spent budget")
    with pytest.raises(CheckpointError, match="of another run"):
        other.load_state_dict(engine.state_dict())
    engine.load_checkpoint(path, module=model, optimizer=optimizer)  # its own may be loaded at any time
    third, resumed, other_optimizer, other_loader = make()
    third.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    third.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    epoch(resumed, other_optimizer, other_loader)
    epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    unchanged(third, resumed, other_optimizer, path, "of another run")  # both went on from six
    engine.load_checkpoint(path, module=model, optimizer=optimizer)
    assert (engine.accountant.steps, third.accountant.steps) == (9, 9)


def test_releases_without_the_ledger_are_not_those_in_it(tmp_path):
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = small_run.make()
    epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer)
    other, resumed, other_optimizer, other_loader = small_run.make(ledger=tmp_path / "ledger")
    epoch(resumed, other_optimizer, other_loader)
    unchanged(other, resumed, other_optimizer, path, "made without it")
    other.save_checkpoint(path, module=resumed, optimizer=other_optimizer)
    other.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    unchanged(engine, model, optimizer, path, "of another run")


@pytest.mark.parametrize("which", ["noise", "loader"])
def test_generators_that_cannot_go_on(tmp_path, which):
    """They are looked at before model and optimizer are loaded."""
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make(seed=3)
    epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer)
    content = torch.load(path, weights_only=True)
    bad = torch.zeros(16, dtype=torch.uint8)  # as of a generator on a GPU
    content["generators"][which] = {"state": bad} if which == "noise" else bad
    torch.save(content, path)
    other, resumed, other_optimizer, _ = make(seed=3)
    unchanged(other, resumed, other_optimizer, path, "generators cannot go on")
    fresh, data = PrivacyEngine(), make(seed=3)[3].source
    model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    optimizer = torch.optim.Adam(model.parameters())
    fresh.load_checkpoint(path, module=model, optimizer=optimizer)
    with pytest.raises(CheckpointError, match="the checkpoint that was loaded does not fit"):
        fresh.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=data,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            noise_generator=torch.Generator(),
        )
    optimizer.step()  # nothing is attached


def test_the_saved_noise_and_bound_are_in_force_again(tmp_path, sharded):
    path = tmp_path / "run.pt"
    engine, model, optimizer, _ = make()
    engine.noise_multiplier, engine.max_grad_norm = 1.5, 0.3
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    other, resumed, other_optimizer, _ = make()
    other.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    assert (other.noise_multiplier, other.max_grad_norm) == (1.5, 0.3)


def test_other_batches_are_refused(tmp_path, sharded):
    path = tmp_path / "run.pt"
    engine, model, optimizer, _ = make()
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    other, resumed, other_optimizer, _ = make(poisson=False)
    unchanged(other, resumed, other_optimizer, path, "other settings.*sampling")


def test_a_folder_that_is_not_there(tmp_path, sharded):
    engine, model, optimizer, _ = make()
    with pytest.raises(CheckpointError, match="cannot write into"):
        engine.save_checkpoint(tmp_path / "none" / "run.pt", module=model, optimizer=optimizer, sharded=sharded)


def test_epochs_of_a_resumed_run_are_new_epochs(tmp_path, sharded):
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make(poisson=False)
    epoch(model, optimizer, loader)
    one = engine.get_epsilon(1e-5)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    other, resumed, other_optimizer, other_loader = make(poisson=False)
    other.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    epoch(resumed, other_optimizer, other_loader)
    assert [release.epoch for release, _ in other.accountant.history] == [1, 2]
    assert other.get_epsilon(1e-5) > 1.2 * one


def test_runs_that_resume_from_one_file_share_neither_noise_nor_draws(tmp_path, sharded):
    """Without given generators: were a seed saved, or restored, two resumed runs would release the same noise."""
    path = tmp_path / "run.pt"
    engine, model, optimizer, loader = make()
    epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=sharded)
    drawn, released = [], []
    for _ in range(3):
        torch.manual_seed(5)
        other, resumed, optimizer, loader = make()
        other.load_checkpoint(path, module=resumed, optimizer=optimizer)
        for _ in range(20):
            drawn.append([len(x) for x, _ in loader])
        while len(next(iter(loader))[0]) == 0:
            pass
        with pytest.warns(UserWarning, match="noise alone was released"):
            optimizer.step()
        released.append(torch.cat([p.grad.flatten() for p in resumed.parameters()]))
    assert drawn[:20] != drawn[20:40] != drawn[40:]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert int((released[one] == released[other]).sum()) <= 3  # of 43, each alike with a probability of 1e-4


@pytest.mark.parametrize("of_the_sampler", [False, True])
@pytest.mark.parametrize("early", [False, True], ids=["after make_private", "before"])
def test_a_resumed_run_with_a_given_generator_draws_other_batches(tmp_path, of_the_sampler, early):
    def run(resume):
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(24, 3), torch.arange(24))
        generator = torch.Generator().manual_seed(5)
        sampler = RandomSampler(data, generator=generator) if of_the_sampler else None
        loader = DataLoader(data, batch_size=4, sampler=sampler, generator=None if of_the_sampler else generator)
        model, engine = nn.Linear(3, 1), PrivacyEngine()
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        if resume and early:
            engine.load_checkpoint(tmp_path / "saved", module=model, optimizer=plain)
        _, optimizer, loader = engine.make_private(
            module=model,
            optimizer=plain,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        if resume and not early:
            engine.load_checkpoint(tmp_path / "saved", module=model, optimizer=optimizer)
        seen = []
        for x, ids in loader:
            seen.append(ids.tolist())
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        engine.save_checkpoint(tmp_path / "saved", module=model, optimizer=optimizer)
        return seen

    first = run(False)
    shutil.copy(tmp_path / "saved", tmp_path / "kept")
    once = run(True)
    shutil.copy(tmp_path / "kept", tmp_path / "saved")
    again = run(True)
    # The same batches with other noise would be second releases of draws that count once.
    assert first != once != again != first


@pytest.mark.parametrize("poisson", [False, True])
def test_a_batch_from_before_a_checkpoint_was_loaded_is_not_released(tmp_path, poisson):
    """It would be counted with the pass of the same number that is in the checkpoint."""
    engine, model, optimizer, loader = make(poisson=poisson)
    epoch(model, optimizer, loader)
    engine.save_checkpoint(tmp_path / "saved", module=model, optimizer=optimizer)
    other, resumed, other_optimizer, other_loader = make(poisson=poisson)
    batches = iter(other_loader)
    held = next(batches)
    other.load_checkpoint(tmp_path / "saved", module=resumed, optimizer=other_optimizer)
    with pytest.raises(SamplingError, match="drawn before a checkpoint was loaded"):
        small_run.step(resumed, other_optimizer, held)
    with pytest.raises(SamplingError, match="while this iteration over the loader was going on"):
        next(batches)
    assert other.accountant.steps == 3


@pytest.mark.parametrize("put", ["load_state_dict", "replace"])
def test_a_history_that_is_put_in_place_in_mid_run_is_refused(put):
    """Passes of the loader would be taken for those that are in it."""
    engine, *run = make(poisson=False)
    epoch(*run)
    state, history = engine.accountant.state_dict(), engine.accountant.history
    other, *parts = make(poisson=False)
    other.accountant.load_state_dict(state) if put == "load_state_dict" else other.accountant.replace(history)
    with pytest.raises(ConfigurationError, match="history was replaced while this run was going on"):
        epoch(*parts)
    assert other.accountant.steps == 3
