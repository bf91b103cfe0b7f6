"""``tacit calibrate``: the noise, the batch size or the length for a wanted epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tacit import accounting
from tacit.accounting import Adjacency
from tacit.commands import options
from tacit.commands.options import Schedule, downward_digits, upward_digits
from tacit.errors import ConfigurationError

_MOST_STEPS = 2**40


def calibrate_command(
    epsilon: Annotated[float, typer.Option(help="Target epsilon, above 0.")],
    delta: options.Delta,
    noise_multiplier: options.NoiseMultiplier = None,
    sample_rate: options.SampleRate = None,
    steps: options.Steps = None,
    dataset_size: options.DatasetSize = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    accountant: options.AccountantName = "pld",
    adjacency: options.AdjacencyName = options.DEFAULT_ADJACENCY,
    as_json: options.AsJson = False,
) -> None:
    """What is left out, so that DP-SGD with Poisson sampling stays within epsilon.

    Least noise, or else the largest batch size (or sample rate), or the longest run.

    Example: tacit calibrate --epsilon 3 --delta 1e-5 --sample-rate 0.01 --steps 1000

    Example: tacit calibrate --epsilon 3 --delta 1e-5 --dataset-size 50000 --batch-size 500 --epochs 10

    Example: tacit calibrate --epsilon 3 --delta 1e-5 --noise-multiplier 1 --dataset-size 50000 --epochs 10

    Example: tacit calibrate --epsilon 3 --delta 1e-5 --noise-multiplier 1 --dataset-size 50000 --batch-size 500
    """
    plan = Schedule(noise_multiplier, sample_rate, steps, dataset_size, batch_size, epochs)
    plan.check()
    if len(plan.missing) != 1:
        given = "nothing is left out" if not plan.missing else f"{', '.join(plan.missing)} are left out"
        raise ConfigurationError(
            f"{given}: leave out exactly one of noise multiplier, batch size (or sample rate) and epochs (or steps)."
        )
    neighbours = options.adjacency(adjacency)
    (name,) = plan.missing
    if name == "noise_multiplier":
        value: float = _noise(plan, epsilon, delta, accountant, neighbours)
        shown = upward_digits(value)
    else:
        value = _largest(
            plan, name, lambda trial: trial.epsilon(delta, accountant, neighbours) <= epsilon, target=epsilon
        )
        shown = f"{value}" if isinstance(value, int) else downward_digits(value)
    spent = plan.varied(name, value).epsilon(delta, accountant, neighbours)
    inputs: dict[str, Any] = {"epsilon": epsilon, "delta": delta, **plan.given()}
    text = f"{name.replace('_', ' ')} = {shown} for epsilon <= {epsilon:g} at delta = {delta:g}"
    options.show(
        text, inputs, {name: value, "epsilon": spent}, accountant=accountant, neighbours=neighbours, as_json=as_json
    )


def _noise(plan: Schedule, epsilon: float, delta: float, accountant: str, adjacency: Adjacency) -> float:
    _, rate, count = plan.varied("noise_multiplier", 1.0).resolved()
    return accounting.noise_multiplier(
        target_epsilon=epsilon,
        target_delta=delta,
        sample_rate=rate,
        steps=count,
        accountant=accountant,
        adjacency=adjacency,
    )


def _largest(plan: Schedule, name: str, fits: Callable[[Schedule], bool], *, target: float) -> float:
    """The largest value with which the run keeps to the target; ε grows with each of them."""
    if name == "sample_rate":
        low, high = 2.0**-40, 1.0
        if fits(plan.varied("sample_rate", high)):
            return high
        if not fits(plan.varied("sample_rate", low)):
            raise ConfigurationError(_hopeless(target))
        while high / low > 1 + 1e-4:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if fits(plan.varied("sample_rate", middle)) else (low, middle)
        return low
    largest = plan.dataset_size if name == "batch_size" else _MOST_STEPS
    assert largest is not None  # a batch size is missing only where sizes are given
    if not fits(plan.varied(name, 1)):
        raise ConfigurationError(_hopeless(target))
    fit, high = 1, min(2, largest)
    while fit < high and fits(plan.varied(name, high)):
        fit, high = high, min(2 * high, largest)
    while high - fit > 1:
        middle_count = (fit + high) // 2
        fit, high = (middle_count, high) if fits(plan.varied(name, middle_count)) else (fit, middle_count)
    return fit


def _hopeless(target: float) -> str:
    return f"even the least of it costs more than epsilon {target:g}: use more noise, or shorten the run."
