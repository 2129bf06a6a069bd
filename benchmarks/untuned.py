"""What is usual of untuned runs, chosen on simulated grids, and the step-law grid untouched.

    CARBS_DATA=... python benchmarks/untuned.py

A grid has several models, each trained on several numbers of tokens at every learning rate and
batch size. One run for each model, tokens and learning rate is kept at random, those at 1/10 of
the largest compute or less are fitted, and the lower edge of the others is predicted.
"""

from __future__ import annotations

import argparse
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from carbs.analysis import UndeterminedLawWarning, fit_loss_law
from carbs.analysis.laws.untuned import USUAL_EDGE, EdgePrior

GRID: dict[str, Sequence[float]] = {
    "excess": (0.01, 0.02, 0.04),
    "excess_of_bowl": (2e-3, 4e-3, 8e-3),
    "curve": (0.08, 0.12, 0.18),
    "turn": (0.1, 0.5, 2.0),
    "reach": (0.03, 0.05, 0.1),
}
N_PRIORS, N_WORLDS = 16, 12
SCALES, VARIED = ["n_params", "n_tokens"], ["lr", "batch_size_tokens"]
Truth = Callable[[pd.Series, pd.Series], pd.Series]


def drawn(seed: int) -> EdgePrior:
    """The present one first, then others of the grid."""
    if seed == 0:
        return USUAL_EDGE
    rng = np.random.default_rng(seed)
    of = {name: float(rng.choice(values)) for name, values in GRID.items()}
    return EdgePrior(
        excess=(of["excess"], USUAL_EDGE.excess[1]),
        excess_of_bowl=(of["excess_of_bowl"], USUAL_EDGE.excess_of_bowl[1]),
        curve=(of["curve"], USUAL_EDGE.curve[1]),
        turn=of["turn"],
        reach=of["reach"],
    )


def world(seed: int) -> tuple[pd.DataFrame, Truth]:
    """A grid of runs and the law of its lower edge: a skewed bowl, and a side that diverges."""
    rng = np.random.default_rng(seed)
    alpha, E, a, b = rng.uniform([0.25, 1.4, 0.3, 0.3], [0.4, 2.0, 0.6, 0.6])
    beta = alpha * math.exp(rng.normal(0, 0.2))

    def truth(N: pd.Series, D: pd.Series) -> pd.Series:
        return E + a * (N / 3e8) ** -alpha + b * (D / 6e9) ** -beta

    sizes = 10 ** rng.uniform(7.5, 8.5) * np.geomspace(1, rng.uniform(4, 30), rng.integers(3, 6))
    ratios = np.geomspace(rng.uniform(3, 20), rng.uniform(40, 400), rng.integers(3, 5))
    off = np.exp(rng.normal(0, 0.7, 2))
    runs = pd.DataFrame(
        [
            (N, N * ratio, lr, batch)
            for N in sizes
            for ratio in ratios
            for lr in 5e-3 * off[0] * 2.0 ** np.arange(-5, 4)
            for batch in 3e5 * off[1] * 2.0 ** np.arange(-3, 5)
        ],
        columns=[*SCALES, *VARIED],
    )
    of_N, of_D, of_batch = rng.uniform([-0.9, -0.1, 0.3], [-0.2, 0.4, 0.7])
    N, D = runs["n_params"] / 1e8, runs["n_tokens"] / 1e10
    x = np.log2(runs["lr"] / (5e-3 * N**of_N * D**of_D))  # doublings from the optimum
    z = np.log2(runs["batch_size_tokens"] / (3e5 * D**of_batch))
    c, d = rng.uniform([2e-3, 7e-4], [8e-3, 3e-3])
    steeper = np.where(x > 0, rng.uniform(1, 3), 1.0)
    bowl = c * steeper * x**2 + d * z**2 + 2 * rng.uniform(-0.6, 0.6) * math.sqrt(c * d) * x * z
    bowl = np.maximum(bowl, 0)
    above = np.where(bowl < 0.1, bowl, 0.05 + 0.5 * bowl)
    diverged = (x - 0.3 * z > rng.uniform(2.5, 4)) & (rng.random(len(runs)) < 0.7)
    above = above + diverged * rng.uniform(0.2, 1.5, len(runs))
    noise = 10 ** rng.uniform(-3, -2.4) * rng.standard_t(5, len(runs))
    return runs.assign(
        loss=truth(runs["n_params"], runs["n_tokens"]) * np.exp(above + noise)
    ), truth


def errors(
    runs: pd.DataFrame, prior: EdgePrior, seed: int = 0, truth: Truth | None = None
) -> dict[str, float]:
    """Mean error at the dear cells, of each way to fit thinned cheap ones."""
    runs = runs.assign(flops=6.0 * runs["n_params"] * runs["n_tokens"])
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
        runs, truth = world(seed)
        found.append(errors(runs, prior, truth=truth))
    return dict(np.exp(np.log(pd.DataFrame(found)).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    where = os.environ.get("CARBS_DATA")
    if not where:
        raise SystemExit("set CARBS_DATA to the folder of published measurements")
    priors = [drawn(seed) for seed in range(N_PRIORS)]
    with ProcessPoolExecutor(arguments.processes) as executor:
        chosen_on = partial(over_worlds, seeds=range(N_WORLDS))
        found = pd.DataFrame(list(executor.map(chosen_on, priors)))
        best = {way: priors[int(found[way].argmin())] for way in ("one-sided error", "bowl")}
        print("simulated, the present one first:", (100 * found).round(2), sep="\n")
        for way, prior in best.items():
            others = over_worlds(prior, range(100, 100 + N_WORLDS))[way]
            print(f"best of {way}: {prior}; on other grids {100 * others:.2f}%")
    steplaw = pd.read_csv(Path(where) / "steplaw_dense.csv")
    table = pd.DataFrame([errors(steplaw, USUAL_EDGE, seed) for seed in range(3)])
    print("step-law, three draws, as shipped:", (100 * table).round(2), sep="\n")


if __name__ == "__main__":
    main()
