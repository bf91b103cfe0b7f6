"""``tacit epsilon``: what a planned run costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tacit.accounting import PoissonRelease, create_accountant, search_epsilon
from tacit.commands import options
from tacit.commands.options import Schedule, finite, upward_digits
from tacit.errors import ConfigurationError


def epsilon_command(
    noise_multiplier: Annotated[float, typer.Option(help="Noise standard deviation / clipping bound.")],
    delta: options.Delta,
    sample_rate: options.SampleRate = None,
    steps: options.Steps = None,
    dataset_size: options.DatasetSize = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    group: Annotated[int, typer.Option(help="For how many records of one person together.")] = 1,
    search_runs: Annotated[
        float | None,
        typer.Option(help="The best of a random (geometric) number of such runs, of this mean, is released."),
    ] = None,
    accountant: options.AccountantName = "pld",
    adjacency: options.AdjacencyName = options.DEFAULT_ADJACENCY,
    as_json: options.AsJson = False,
) -> None:
    """Epsilon of DP-SGD with Poisson sampling.

    Example: tacit epsilon --noise-multiplier 1.0 --sample-rate 0.01 --steps 1000 --delta 1e-5

    Example: tacit epsilon --noise-multiplier 1.0 --dataset-size 50000 --batch-size 500 --epochs 10
    --delta 1e-5

    Example: tacit epsilon --noise-multiplier 1.0 --sample-rate 0.01 --steps 1000 --delta 1e-5 --search-runs 20
    """
    plan = Schedule(noise_multiplier, sample_rate, steps, dataset_size, batch_size, epochs)
    noise, rate, count = plan.resolved()
    neighbours = options.adjacency(adjacency)
    spent = create_accountant(accountant, neighbours)
    spent.record(PoissonRelease(noise, rate), count)
    inputs: dict[str, Any] = {"delta": delta, **plan.given()}
    if search_runs is not None:
        if group != 1:
            raise ConfigurationError("--group and --search-runs together have no bound here: leave one out.")
        found = search_epsilon(spent.history, delta, mean_runs=search_runs, adjacency=neighbours)
        text = f"epsilon = {upward_digits(found)} at delta = {delta:g}, for the best of {search_runs:g} runs on average"
        inputs["search_runs"] = search_runs
        options.show(text, inputs, {"epsilon": finite(found)}, accountant="rdp", neighbours=neighbours, as_json=as_json)
        return
    interval = spent.get_interval(delta, group=group)
    found = spent.get_epsilon(delta) if group == 1 else interval.upper
    text = f"epsilon = {upward_digits(found)} at delta = {delta:g}"
    if group != 1:
        inputs["group"] = group
        text += f", for {group} records together"
    result = {"epsilon": finite(found), "epsilon_lower": finite(interval.lower), "method": interval.method}
    options.show(text, inputs, result, accountant=accountant, neighbours=neighbours, as_json=as_json)
