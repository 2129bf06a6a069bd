"""Laws of runs that are not tuned, on simulated grids and on the step-law grid.

    CARBS_DATA=... python benchmarks/untuned.py             # the lower edge
    CARBS_DATA=... python benchmarks/untuned.py --optima    # the best hyperparameters

A grid has several models, each trained on several numbers of tokens at every learning rate and
batch size. One run for each model, tokens and learning rate is kept at random, those at 1/10 of
the largest compute or less are fitted, and the lower edge of the others is predicted. With
``--optima`` some of the runs at 1/10 are, at random, or some at scales of their own, and the best
learning rate and batch size of the others.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from carbs.analysis import UndeterminedLawWarning, fit_loss_law, fit_optimum_law, regret
from carbs.analysis.laws.untuned import USUAL_EDGE, EdgePrior

EXCESSES = (0.01, 0.02, 0.04)  # medians of what runs lie above the edge
N_WORLDS = 12
SCALES, VARIED = ["n_params", "n_tokens"], ["lr", "batch_size_tokens"]
Truth = Callable[[pd.Series, pd.Series], pd.Series]
Above = Callable[[pd.DataFrame], np.ndarray]
# Of the runs at 1/10 of the compute: a share of the grid, or a number of them.
GIVEN = (1.0, 0.25, 0.1, 0.05, 30)
SCATTERED = (150, 60)  # runs that each have a scale of their own


@dataclass(frozen=True)
class World:
    """A grid of runs: a skewed bowl over the law of its lower edge, and a side that diverges.

    Attributes:
        runs: the grid; scattered: runs over the same ranges, each at a scale of its own.
        truth: the law.
        above: how far the bowl is above it, in log loss, and half more where runs diverge.
    """

    runs: pd.DataFrame
    scattered: pd.DataFrame
    truth: Truth
    above: Above


def world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    alpha, E, a, b = rng.uniform([0.25, 1.4, 0.3, 0.3], [0.4, 2.0, 0.6, 0.6])
    beta = alpha * math.exp(rng.normal(0, 0.2))

    def truth(N: pd.Series, D: pd.Series) -> pd.Series:
        return E + a * (N / 3e8) ** -alpha + b * (D / 6e9) ** -beta

    sizes = 10 ** rng.uniform(7.5, 8.5) * np.geomspace(1, rng.uniform(4, 30), rng.integers(3, 6))
    ratios = np.geomspace(rng.uniform(3, 20), rng.uniform(40, 400), rng.integers(3, 5))
    off = np.exp(rng.normal(0, 0.7, 2))
    rates = 5e-3 * off[0] * 2.0 ** np.arange(-5, 4)
    batches = 3e5 * off[1] * 2.0 ** np.arange(-3, 5)
    runs = pd.DataFrame(
        itertools.product(sizes, ratios, rates, batches), columns=[*SCALES, *VARIED]
    )
    runs["n_tokens"] *= runs["n_params"]
    of_N, of_D, of_batch = rng.uniform([-0.9, -0.1, 0.3], [-0.2, 0.4, 0.7])
    c, d = rng.uniform([2e-3, 7e-4], [8e-3, 3e-3])
    steeper, turn = rng.uniform(1, 3), 2 * rng.uniform(-0.6, 0.6) * math.sqrt(c * d)
    cliff = rng.uniform(2.5, 4)
    spread = 10 ** rng.uniform(-3, -2.4)

    def bowl(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        N, D = runs["n_params"] / 1e8, runs["n_tokens"] / 1e10
        x = np.log2(runs["lr"] / (5e-3 * N**of_N * D**of_D))  # doublings from the optimum
        z = np.log2(runs["batch_size_tokens"] / (3e5 * D**of_batch))
        height = c * np.where(x > 0, steeper, 1.0) * x**2 + d * z**2 + turn * x * z
        height = np.maximum(height, 0)
        height = np.where(height < 0.1, height, 0.05 + 0.5 * height)
        return np.asarray(height), np.asarray(x - 0.3 * z > cliff)

    def measured(runs: pd.DataFrame) -> pd.DataFrame:
        height, beyond = bowl(runs)
        diverged = beyond & (rng.random(len(runs)) < 0.7)
        height = height + diverged * rng.uniform(0.2, 1.5, len(runs))
        noise = spread * rng.standard_t(5, len(runs))
        edge = truth(runs["n_params"], runs["n_tokens"])
        flops = 6.0 * runs["n_params"] * runs["n_tokens"]
        return runs.assign(loss=edge * np.exp(height + noise), flops=flops)

    def above(runs: pd.DataFrame) -> np.ndarray:
        height, beyond = bowl(runs)
        return height + 0.5 * beyond

    grid = measured(runs)
    drawn = [
        np.exp(rng.uniform(math.log(min(values)), math.log(max(values)), 10 * max(SCATTERED)))
        for values in (sizes, ratios, rates, batches)
    ]
    apart = pd.DataFrame(np.stack(drawn, axis=1), columns=[*SCALES, *VARIED])
    apart["n_tokens"] *= apart["n_params"]
    return World(grid, measured(apart), truth, above)


def errors(
    runs: pd.DataFrame, prior: EdgePrior, seed: int = 0, truth: Truth | None = None
) -> dict[str, float]:
    """Mean error at the dear cells, of each way to fit thinned cheap ones."""
    best = runs.groupby(SCALES, as_index=False).agg(loss=("loss", "min"), flops=("flops", "first"))
    dear = best[best["flops"] > best["flops"].max() / 10]
    edge = dear["loss"] if truth is None else truth(dear["n_params"], dear["n_tokens"])
    thinned = runs.groupby([*SCALES, "lr"]).sample(1, random_state=seed)
    thinned = thinned[thinned["flops"] <= runs["flops"].max() / 10]
    ways = {
        "as if tuned": {},
        "one-sided error": {"tuned": False},
        "bowl": {"hyperparameters": thinned[VARIED]},
    }
    found = {}
    for way, options in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndeterminedLawWarning)
            law = fit_loss_law(
                *(thinned[name] for name in [*SCALES, "loss"]),
                n_resamples=2,
                edge_prior=prior,
                **options,
            )
        found[way] = float(
            np.abs(law.predict(dear["n_params"], dear["n_tokens"]) / edge - 1).mean()
        )
    return found


def over_worlds(prior: EdgePrior, seeds: Sequence[int]) -> Mapping[str, float]:
    """Geometric mean of the errors over simulated grids."""
    found = []
    for seed in seeds:
        one = world(seed)
        found.append(errors(one.runs, prior, truth=one.truth))
    return dict(np.exp(np.log(pd.DataFrame(found)).mean()))


def regrets(runs: pd.DataFrame, given: pd.DataFrame, above: Above | None) -> float:
    """Mean regret of the predicted optimum at the scales beyond 1/10 of the compute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndeterminedLawWarning)
        law = fit_optimum_law(given, VARIED, SCALES, n_resamples=2)
    found = []
    for scale, at in runs[runs["flops"] > runs["flops"].max() / 10].groupby(SCALES):
        best = law.predict(**dict(zip(SCALES, scale, strict=True)))
        if above is None:
            found.append(regret(at, {name: float(value) for name, value in best.items()}))
        else:
            one = dict(zip(SCALES, scale, strict=True)) | best
            found.append(float(above(pd.DataFrame(one, index=[0]))[0]))
    return float(np.mean(found))


def optima(seed: int) -> dict[str, float]:
    """Of one simulated grid, by what is fitted."""
    one = world(seed)
    cheap, apart = (
        runs[runs["flops"] <= one.runs["flops"].max() / 10] for runs in (one.runs, one.scattered)
    )
    found = {}
    for n in GIVEN:
        size = int(n * len(cheap)) if n <= 1 else n
        given = cheap.sample(min(max(size, 25), len(cheap)), random_state=seed)
        found[f"{n:.0%}" if n <= 1 else f"{n} runs"] = regrets(one.runs, given, one.above)
    for n in SCATTERED:
        found[f"{n} scattered"] = regrets(one.runs, apart.head(n), one.above)
    return found


def published_optima(runs: pd.DataFrame, n_draws: int = 6) -> None:
    cheap = runs[runs["flops"] <= runs["flops"].max() / 10]
    for share in (1.0, 0.25, 0.1, 0.05):
        found = [
            regrets(runs, cheap.sample(frac=share, random_state=seed), None)
            for seed in range(n_draws if share < 1 else 1)
        ]
        print(f"step-law, {share:.0%} of 820 runs: {100 * np.mean(found):.3f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--optima", action="store_true")
    arguments = parser.parse_args()
    where = os.environ.get("CARBS_DATA")
    if not where:
        raise SystemExit("set CARBS_DATA to the folder of published measurements")
    steplaw = pd.read_csv(Path(where) / "steplaw_dense.csv")
    if arguments.optima:
        for half, seeds in {"chosen with": range(20), "others": range(100, 124)}.items():
            with ProcessPoolExecutor(arguments.processes) as executor:
                found = 100 * pd.DataFrame(list(executor.map(optima, seeds)))
            table = pd.DataFrame({"mean": found.mean(), "median": found.median()})
            table["p90"] = found.quantile(0.9)
            print(f"simulated grids, {half}: regret of the optimum, %", table.round(3), sep="\n")
        published_optima(steplaw)
        return
    priors = [EdgePrior(excess=(median, USUAL_EDGE.excess[1])) for median in EXCESSES]
    with ProcessPoolExecutor(arguments.processes) as executor:
        for half, first in {"chosen with": 0, "others": 100}.items():
            over = partial(over_worlds, seeds=range(first, first + N_WORLDS))
            found = pd.DataFrame(list(executor.map(over, priors)), index=list(EXCESSES))
            print(f"simulated, {half}, by the excess:", (100 * found).round(2), sep="\n")
    table = pd.DataFrame([errors(steplaw, USUAL_EDGE, seed) for seed in range(8)])
    print("step-law, eight draws, as shipped:", (100 * table).describe().round(2), sep="\n")


if __name__ == "__main__":
    main()
