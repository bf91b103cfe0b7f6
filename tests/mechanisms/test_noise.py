"""The default noise is standard normal, and its parts are independent. Entropy is real: no seed fixes these draws.

Each bound is 6.5 standard deviations of a mean of more than 10⁵ independent terms: false alarms under 1e-9 in all.
"""

import copy
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tacit.errors import PrivacyError
from tacit.mechanisms import NoiseSource, add_gaussian_noise
from tacit.mechanisms.gaussian import grid_of
from tacit.mechanisms.rounding import ROUNDING
from tacit.mechanisms.secure import KEYED_PAIRS, PAIRS, READY, Job, SecureNormal, box_muller

LARGE = 2 * PAIRS

CPU = torch.device("cpu")
BOUND = 6.5


@pytest.mark.parametrize("shape", [(LARGE // 2,), (4 * LARGE,), (3, LARGE + 1)])
def test_moments(shape):
    source = NoiseSource()
    drawn = torch.cat([source.normal(torch.Size(shape), CPU).flatten() for _ in range(4)]).double()
    n = drawn.numel()
    assert abs(float(drawn.mean())) < BOUND / n**0.5
    assert abs(float(drawn.square().mean()) - 1) < BOUND * (2 / n) ** 0.5
    assert abs(float(drawn.pow(4).mean()) - 3) < BOUND * (96 / n) ** 0.5


def test_halves_calls_and_sources_are_independent():
    source, other = NoiseSource(), NoiseSource()
    size = torch.Size((4 * LARGE,))
    first, second, third = (s.normal(size, CPU).double() for s in (source, source, other))
    half = size[0] // 2
    for a, b in ((first[:half], first[half:]), (first, second), (first, third)):
        assert abs(float((a * b).mean())) < BOUND / len(a) ** 0.5


def test_a_given_generator_is_the_only_source():
    a, b = (NoiseSource(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.normal(torch.Size((2 * LARGE,)), CPU), b.normal(torch.Size((2 * LARGE,)), CPU))
    state = a.state_dict()
    first = a.normal(torch.Size((5,)), CPU)
    a.load_state_dict(state)
    assert torch.equal(first, a.normal(torch.Size((5,)), CPU))
    assert NoiseSource().state_dict() == {}


@pytest.mark.parametrize("in_place", [True, False])
def test_small_sums_of_all_shapes_stay_in_their_place(in_place):
    shapes = [(), (3,), (0,), (0, 3), (3, 0), (2, 5), (2, 1, 3)]
    totals = [torch.full(shape, 8.0) for shape in shapes]
    for several in (totals, totals[5:6], totals[2:3]):
        released = add_gaussian_noise(several, std=1e-6, divisor=4.0, noise=NoiseSource(), in_place=in_place)
        assert [one.shape for one in released] == [total.shape for total in several]
        for one, total in zip(released, several, strict=True):
            assert (one is total) is in_place
            torch.testing.assert_close(one, torch.full(one.shape, 2.0), rtol=0, atol=1e-4)
            assert in_place or bool((total == 8.0).all())
            total.fill_(8.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_place", [True, False])
def test_noise_is_added_before_the_division(dtype, in_place):
    total = torch.full((3, 4), 8.0, dtype=dtype)
    (quiet,) = add_gaussian_noise([total], std=0.0, divisor=4.0, noise=NoiseSource())
    assert torch.equal(quiet, torch.full((3, 4), 2.0, dtype=dtype))
    noise = NoiseSource(torch.Generator().manual_seed(0))
    drawn = NoiseSource(torch.Generator().manual_seed(0)).normal(total.shape, CPU)
    (released,) = add_gaussian_noise([total], std=0.5, divisor=4.0, noise=noise, in_place=in_place)
    torch.testing.assert_close(
        released, ((8.0 + 0.5 * (1 + ROUNDING) * drawn) / 4).to(dtype), rtol=0, atol=grid_of(0.5)
    )
    assert (float(total[0, 0]) == 8.0) is not in_place
    strided = torch.full((4, 3), 8.0, dtype=dtype).t()
    (again,) = add_gaussian_noise([strided], std=0.5, divisor=4.0, noise=NoiseSource(), in_place=True)
    assert again.shape == (3, 4)
    assert float(strided[0, 0]) == 8.0


@pytest.mark.parametrize("std", [1e-3, 0.7, 1.0, 300.0])
def test_what_is_released_lies_on_a_public_grid(std):
    """Neither the sum nor its last bits can be told from which numbers come out."""
    grid = grid_of(std)
    assert std * 2**-13 < grid <= std * 2**-12
    for total in (torch.randn(1000), torch.randn(1000) * 1e-20, torch.randn(3 * LARGE, dtype=torch.float64)):
        (released,) = add_gaussian_noise([total.double()], std=std, divisor=1.0, noise=NoiseSource())
        steps = released / grid
        assert torch.equal(steps, steps.round())


def normals(count):
    return NoiseSource().normal(torch.Size((count,)), CPU)


@pytest.mark.parametrize("count", [READY // 4, 2 * LARGE + 7])
def test_kolmogorov_smirnov(count):
    """P(√n D > 4.2) ≤ 2 exp(−2 · 4.2²) = 1e-15 (Massart 1990, doi:10.1214/aop/1176990746)."""
    source = NoiseSource()
    drawn = torch.cat([source.normal(torch.Size((count,)), CPU) for _ in range(max(1, 2**20 // count))])
    drawn = drawn.sort().values
    n = len(drawn)
    expected = torch.special.ndtr(drawn)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - expected
    assert max(float(above.max()), float((1 / n - above).max())) * n**0.5 < 4.2


def test_tails():
    """Counts beyond t, up to 5 standard deviations, are Poisson to 1e-9 by Bernstein's inequality."""
    drawn = normals(2**23).abs()
    for t in (3.0, 4.0, 4.5, 5.0):
        expected = 2 * float(torch.special.ndtr(torch.tensor(-t, dtype=torch.float64))) * len(drawn)
        found = int((drawn > t).sum())
        assert abs(found - expected) < (2 * 21 * expected) ** 0.5 + 21


def test_neighbours_in_every_distance_are_uncorrelated():
    """The two halves of a block come from the same words; so do angle and radius."""
    drawn = normals(4 * LARGE)
    for distance in (1, 2, PAIRS - 1, PAIRS, PAIRS + 1, LARGE, 2 * LARGE):
        a, b = drawn[:-distance], drawn[distance:]
        for f in (lambda x: x, lambda x: x.square() - 1, lambda x: x.abs() - (2 / torch.pi) ** 0.5):
            products = f(a) * f(b)
            assert abs(float(products.mean())) < BOUND * float(products.std()) / len(a) ** 0.5


def test_small_tensors_never_share_numbers():
    source = SecureNormal()
    seen = []
    for count in (1, 3, READY - 1, 7, READY, 2, READY - 5, 1):
        source.each([Job(count, lambda numbers, part: seen.append(numbers.clone()))])
    whole = torch.cat(seen)
    assert len(whole.unique()) == len(whole)


def test_a_forked_process_takes_new_keys():
    source = NoiseSource()
    source.normal(torch.Size((5,)), CPU)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        drawn = source.normal(torch.Size((5,)), CPU)
        os.write(writer, drawn.numpy().tobytes())
        os._exit(0)
    ours = source.normal(torch.Size((5,)), CPU)
    theirs = torch.frombuffer(bytearray(os.read(reader, 40)), dtype=torch.float64)
    os.waitpid(child, 0)
    assert not torch.isin(theirs, ours).any()


def with_threads(count, call):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def test_threads_of_the_rest_are_as_they_were():
    def made():
        normals(8 * LARGE)
        return torch.get_num_threads()

    assert with_threads(3, made) == 3


@pytest.mark.parametrize("key", [None, bytes(16)])
def test_threads_share_no_numbers_and_leave_none_out(key):
    source = SecureNormal(key)
    block = 2 * (PAIRS if key is None else KEYED_PAIRS)
    out = torch.full((40 * block + 5,), float("nan"), dtype=torch.float64)
    times = torch.zeros(len(out), dtype=torch.int8)

    def finish(numbers, part):
        out[part] = numbers
        times[part] += 1

    with_threads(4, lambda: source.each([Job(len(out), finish)]))
    assert bool((times == 1).all())
    assert len(out.unique()) > len(out) - 10  # two are the same by chance with a probability of 2e-4
    assert source.next_block == 41


@pytest.mark.parametrize("make", [NoiseSource, lambda: NoiseSource(key=bytes(32)), SecureNormal])
@pytest.mark.parametrize("count", [READY - 95, 2 * LARGE + 1])
def test_a_source_that_several_threads_use_at_once(make, count):
    """As where two engines with one noise source train in two threads."""
    source, seen = make(), []

    def draw(_):
        out = torch.full((count,), float("nan"), dtype=torch.float64)
        job = Job(count, lambda numbers, part: out[part].copy_(numbers))
        source.each([job], CPU) if isinstance(source, NoiseSource) else source.each([job])
        seen.append(out)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(draw, range(160 if count < LARGE else 24)))
    whole = torch.cat(seen)
    assert bool(torch.isfinite(whole).all())
    # Of 2.4 million float64 two are equal by chance once in 3,000 runs; ten are never.
    assert len(whole.unique()) > len(whole) - 10


def test_a_process_that_was_forked_while_a_thread_drew_draws_too():
    """It inherits the lock as it was: held, by a thread that it does not have."""
    source, drawn = NoiseSource(), []

    def fork(numbers, _):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends the child if it waits for ever
            os.write(writer, source.normal(torch.Size((5,)), CPU).numpy().tobytes())
            os._exit(0)
        os.close(writer)
        drawn.append(torch.frombuffer(bytearray(os.read(reader, 40)), dtype=torch.float64))
        os.waitpid(child, 0)
        assert not torch.isin(drawn[0], numbers).any()

    source.each([Job(7, fork)], CPU)
    assert len(drawn[0]) == 5


def test_an_error_in_any_thread_is_raised_when_all_have_stopped():
    source, running = SecureNormal(bytes(16)), []

    def finish(numbers, part):
        running.append(part.start)
        if part.start == 12 * KEYED_PAIRS:
            raise OverflowError

    with pytest.raises(OverflowError):
        with_threads(3, lambda: source.each([Job(80 * KEYED_PAIRS, finish)]))
    count = len(running)
    source.each([Job(2 * KEYED_PAIRS, lambda *_: None)])
    assert len(running) == count


def test_many_tensors_at_once_are_filled_whole_and_share_nothing():
    counts = [3, 2 * LARGE + 1, READY, READY + 1, 7, LARGE]
    outs = [torch.full((count,), float("nan"), dtype=torch.float64) for count in counts]
    jobs = [Job(len(out), lambda numbers, part, out=out: out[part].copy_(numbers)) for out in outs]
    SecureNormal().each(jobs)
    whole = torch.cat(outs)
    assert bool(torch.isfinite(whole).all())
    assert len(whole.unique()) == len(whole)


def transformed(first, second, deviation=1.0):
    words = torch.from_numpy(np.array([first, second], dtype=np.int64))
    return torch.stack(box_muller(words, deviation, torch.empty(3, words.shape[1], dtype=torch.float64)))


def test_the_transform_is_exact_to_the_last_bits():
    """Against NumPy, whose logarithm and sine are others'."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(-(2**63), 2**63 - 1, (2, 100_001))
    radius = np.sqrt(-2 * np.log((np.abs(first.astype(np.float64)) + 0.5) * 2.0**-63))
    angle = second.astype(np.float64) * 2.0**-63 * np.pi
    found = transformed(first, second, 2.0).numpy()
    assert np.abs(found[0] / 2 - radius * np.cos(angle)).max() < 1e-14
    assert np.abs(found[1] / 2 - radius * np.sin(angle)).max() < 1e-14


def test_radii_at_the_ends():
    """The smallest word is 9.4 deviations out; the largest are at 0, and no number is NaN."""
    first = [0, 1, -1, -(2**63), 2**63 - 1, -(2**62)]
    cosine, sine = transformed(first, [0] * len(first))
    assert float(cosine[0]) == pytest.approx((2 * 64 * np.log(2)) ** 0.5)
    assert float(cosine[1]) == float(cosine[2]) < float(cosine[0])
    assert bool(torch.isfinite(cosine).all())
    assert not bool(cosine[3:5].any())
    assert not bool(sine.any())


def test_jobs_have_deviations_of_their_own():
    for count in (100, LARGE + 3):
        seen = []
        SecureNormal().each([Job(count, lambda numbers, part, seen=seen: seen.append(numbers.clone()), 1e6)])
        assert 1e4 < float(torch.cat(seen).abs().mean()) < 1e8


class TestSharedKey:
    """Sources with one key make the same noise, whatever thread makes which part."""

    KEY = bytes(range(32))

    def numbers(self, source, counts):
        totals = [torch.zeros(count) for count in counts]
        return add_gaussian_noise(totals, std=1.0, divisor=1.0, noise=source)

    def test_the_same_in_processes_with_other_numbers_of_threads(self):
        counts, found = (10, 5000, 300_001), []
        for number in (1, 3):
            source = NoiseSource(key=self.KEY)
            made = [with_threads(number, lambda source=source: self.numbers(source, counts)) for _ in range(2)]
            found.append([*made[0], *made[1]])
            assert source.position == (2 * (1 + 1 + -(-300_001 // (2 * KEYED_PAIRS))),)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        first, again = found[0][:3], found[0][3:]
        assert not any(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        everything = torch.cat(found[0])
        assert len(everything.unique()) > 1000  # rounded to a grid
        assert abs(float(everything.double().var()) - 1) < 4.9 * (2 / everything.numel()) ** 0.5 + 2**-10

    def test_another_key_makes_other_noise(self):
        one, other = (NoiseSource(key=key) for key in (self.KEY, bytes(32)))
        assert not torch.equal(*(self.numbers(source, (50,))[0] for source in (one, other)))

    def test_it_is_never_saved_but_if_it_came_from_a_generator(self):
        assert NoiseSource(key=self.KEY).state_dict() == {}
        source = NoiseSource(torch.Generator(), key=self.KEY)
        self.numbers(source, (5,))
        resumed = NoiseSource(torch.Generator(), key=self.KEY)
        resumed.load_state_dict(source.state_dict())
        assert torch.equal(self.numbers(source, (5,))[0], self.numbers(resumed, (5,))[0])
        assert source.reproducible
        assert "reproducible" in source.description

    def test_a_run_goes_on_in_one_process_and_then_in_several_again(self):
        seen, state = [], {}
        for key in (self.KEY, None, self.KEY, None):
            source = NoiseSource(torch.Generator().manual_seed(1), key=key)
            source.load_state_dict(state)
            seen += self.numbers(source, (5000,))
            state = source.state_dict()
        assert all(not torch.equal(a, b) for number, a in enumerate(seen) for b in seen[:number])

    def test_a_forked_process_may_not_use_it(self, monkeypatch):
        source = NoiseSource(key=self.KEY)
        self.numbers(source, (5,))
        monkeypatch.setattr("os.getpid", lambda: -5)
        with pytest.raises(PrivacyError, match="forked from one that trains together"):
            self.numbers(source, (5,))


class TestGiven:
    """A generator on the CPU says where in a cipher's stream each release begins."""

    COUNTS = (10, 5000, 300_001)

    def numbers(self, source, device=CPU, std=1.0):
        totals = [torch.zeros(count, device=device) for count in self.COUNTS]
        return torch.cat(add_gaussian_noise(totals, std=std, divisor=1.0, noise=source))

    def source(self, seed=1):
        return NoiseSource(torch.Generator().manual_seed(seed))

    def test_the_same_for_one_seed_on_any_number_of_threads_and_other_for_each_release(self):
        sources = self.source(), self.source()
        one, other = (
            [with_threads(threads, lambda source=source: self.numbers(source)) for _ in range(2)]
            for threads, source in zip((1, 3), sources, strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        drawn = torch.cat([*one, self.numbers(self.source(2))]).double().view(3, -1)
        correlation = torch.corrcoef(drawn) - torch.eye(3)
        assert float(correlation.abs().max()) < 5.5 * drawn.shape[1] ** -0.5  # false alarms: 3 pairs, 1e-7
        assert abs(float(drawn.var()) - 1) < 5.5 * (2 / drawn.numel()) ** 0.5 + 2**-10

    def test_its_state_is_all_there_is_to_a_checkpoint(self):
        source, resumed = self.source(), self.source(5)
        self.numbers(source)
        resumed.load_state_dict(source.state_dict())
        assert torch.equal(self.numbers(source), self.numbers(resumed))

    def test_the_same_numbers_on_every_device(self, device):
        on_cpu, there = self.numbers(self.source()), self.numbers(self.source(), torch.device(device))
        assert float((on_cpu - there.cpu()).abs().max()) <= 2**-10  # a step of the grid

    def test_numbers_are_handed_to_other_devices_whole(self):
        seen = []
        jobs = [
            Job(count, lambda numbers, part: seen.append((numbers.device.type, len(numbers), part)))
            for count in (3, LARGE)
        ]
        self.source().each(jobs, torch.device("meta"))
        assert seen == [("meta", 3, slice(0, 3)), ("meta", LARGE, slice(0, LARGE))]

    def test_a_forked_process_makes_them_again(self):
        source = NoiseSource(torch.Generator().manual_seed(1))
        source.normal(torch.Size((8,)), CPU)
        theirs = in_a_fork(source)
        assert len(theirs) == 8
        again = [source.normal(torch.Size((8,)), CPU) for _ in range(2)]
        assert torch.equal(theirs, again[1])  # its first try, which fails, has taken the first


def in_a_fork(source, count=8):
    """What a forked process draws; nothing if it is refused."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, drawn_despite_failure(source, count).numpy().tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    drawn = os.read(reader, 8 * count)
    os.waitpid(child, 0)
    os.close(reader)
    return torch.frombuffer(bytearray(drawn), dtype=torch.float64) if drawn else torch.empty(0)


def drawn_despite_failure(source, count):
    """Numbers, after a first call that fails where it makes new streams."""
    made = SecureNormal._new_stream

    def fails(self):
        SecureNormal._new_stream = made
        raise MemoryError

    SecureNormal._new_stream = fails
    try:
        return source.normal(torch.Size((count,)), CPU)
    except MemoryError:
        return source.normal(torch.Size((count,)), CPU)


@pytest.mark.parametrize("used", [False, True])
def test_a_forked_process_that_failed_to_take_new_keys_has_not_the_old_ones(used):
    source = NoiseSource()
    if used:
        source.normal(torch.Size((1,)), CPU)
    theirs = in_a_fork(source)
    assert len(theirs) == 8
    assert not torch.isin(theirs, source.normal(torch.Size((8,)), CPU)).any()


def test_a_keyed_source_cannot_be_forked_before_its_first_numbers():
    source = NoiseSource(key=bytes(32))
    assert not len(in_a_fork(source))
    assert len(drawn_despite_failure(source, 8)) == 8


@pytest.mark.parametrize("where", ["submit", "here", "there"])
def test_threads_that_failed_leave_no_stream_in_use(where, monkeypatch):
    """The next call must not share streams with a thread of the last: what is in their memory would be used twice."""
    source, count = SecureNormal(bytes(16)), 8 * PAIRS
    begun, first = threading.Event(), []

    def finish(numbers, part):
        here = threading.current_thread() is threading.main_thread()
        if here and where == "here":
            begun.wait(timeout=20)
            raise KeyboardInterrupt
        begun.set()
        if not here and where == "there":
            raise KeyboardInterrupt
        time.sleep(0.01)
        first.append(numbers.clone())

    asked = []

    def submit(self, *args, real=ThreadPoolExecutor.submit):
        asked.append(args)
        future = real(self, *args)
        if where == "submit" and len(asked) == 2:
            raise RuntimeError("can't start new thread")
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        with_threads(3, lambda: source.each([Job(count, finish)]))
    seen = len(first)
    time.sleep(0.05)
    assert len(first) == seen  # no thread goes on
    where, rest = "", torch.empty(count, dtype=torch.float64)
    with_threads(3, lambda: source.each([Job(count, lambda numbers, part: rest[part].copy_(numbers))]))
    assert not torch.isin(torch.cat(first) if first else rest[:0], rest).any()
    assert len(rest.unique()) == count


def test_a_copy_would_make_the_same_noise():
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError, match="copy of a source of noise"):
            copied(NoiseSource(key=bytes(32)))
