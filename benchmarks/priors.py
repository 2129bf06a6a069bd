"""What a law expects before any run says something, chosen on published runs kept back.

    CARBS_DATA=... python benchmarks/priors.py

Priors are drawn at random from a coarse grid; the best is chosen, by the mean log
density of what was held out (each publication counts alike, and so do its data sets and their
splits). Every data set is left out once, and every publication with all its sets: what is chosen
without it is judged on it. What the project
ships was found by climbing the same score over all of them, see docs/laws.md.

Splits fit the runs with at most 1/3, 1/10, 1/30 and 1/100 of the largest compute and predict all
the others; or 8, 12, 20 and 40 drawn of those at 1/10 or less, and predict those above it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from carbs.analysis.laws.forecast import PRIOR, Prior, fit_forecast
from carbs.analysis.laws.power_fits import LOSS_FAMILY, as_runs
from carbs.threads import on_one_thread

FACTORS, COUNTS = (3, 10, 30, 100), (8, 12, 20, 40)
LEVEL = 0.9
# What may be chosen: medians, deviations of logs, sizes.
GRID: dict[str, Sequence[float]] = {
    "irreducible": (0.3, 0.4, 0.5, 0.6, 0.7),
    "irreducible width": (0.1, 0.15, 0.2, 0.3, 0.5),
    "exponent": (0.2, 0.25, 0.3, 0.35, 0.4),
    "exponent width": (0.1, 0.15, 0.2, 0.3),
    "ratio width": (0.1, 0.2, 0.3),
    "misfit": (3e-3, 5e-3, 1e-2, 2e-2),
    "length": (0.5, 1.0, 2.0, 4.0),
    "across": (0.5, 1.0, 2.0),
    "cheap": (0.0, 0.12, 0.25, 0.5),
    "noise": (2e-3, 3e-3, 4e-3),
}
N_PRIORS = 120


@dataclass(frozen=True)
class Split:
    """Runs to fit and runs to predict, as (n_params, n_tokens, loss), each ``(3, n)``."""

    data_set: str
    name: str
    fitted: np.ndarray
    held_out: np.ndarray

    @property
    def publication(self) -> str:
        return self.data_set.split()[0]


@dataclass(frozen=True)
class Predicted:
    """Of held-out runs, ``(n,)``: log loss, predicted log loss, and its deviation."""

    y: np.ndarray
    center: np.ndarray
    deviation: np.ndarray

    @property
    def score(self) -> float:
        z = (self.y - self.center) / self.deviation
        return float(np.mean(student.logpdf(z, 5) - np.log(self.deviation)))

    @property
    def error(self) -> float:
        return float(np.abs(np.expm1(self.center - self.y)).mean())


def data_sets(folder: Path) -> dict[str, np.ndarray]:
    """(n_params, n_tokens, loss) of seven data sets of four publications, each ``(3, n)``."""
    chinchilla = pd.read_csv(folder / "chinchilla.csv").query("keep_epoch_filter == 1")
    steplaw = pd.read_csv(folder / "steplaw_dense.csv")
    porian = pd.read_csv(folder / "porian_isoflop.csv").query(
        "hparams == 'tuned' and decay == 'const' and param_count == 'standard' "
        "and n_tokens >= 10 * n_params"
    )
    gadre = pd.read_csv(folder / "gadre.csv").assign(loss=lambda runs: runs["loss_c4_val"])
    scales = ["n_params", "n_tokens"]
    tables = {"Chinchilla": chinchilla}
    tables |= {f"Porian {name}": runs for name, runs in porian.groupby("dataset")}
    tables |= {f"Gadre {name.split('_')[0]}": runs for name, runs in gadre.groupby("dataset")}
    tables["step-law"] = steplaw.groupby(scales, as_index=False)["loss"].min()
    return {name: runs[[*scales, "loss"]].to_numpy(float).T for name, runs in tables.items()}


def splits(sets: Mapping[str, np.ndarray], n_draws: int = 1) -> Iterator[Split]:
    for name, runs in sets.items():
        compute = 6 * runs[0] * runs[1]
        for factor in FACTORS:
            cheap = compute <= compute.max() / factor
            if cheap.sum() >= 6:
                yield Split(name, f"1/{factor}", runs[:, cheap], runs[:, ~cheap])
        cheap = compute <= compute.max() / 10
        for count in COUNTS:
            for seed in range(n_draws) if count < cheap.sum() else ():
                rng = np.random.default_rng([count, seed])
                drawn = rng.choice(np.flatnonzero(cheap), count, replace=False)
                yield Split(name, f"{count} runs", runs[:, drawn], runs[:, ~cheap])


def drawn(seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {name: float(rng.choice(values)) for name, values in GRID.items()}


def prior_of(chosen: Mapping[str, float]) -> Prior:
    return Prior(
        irreducible=(chosen["irreducible"], chosen["irreducible width"]),
        exponent=(chosen["exponent"], chosen["exponent width"]),
        ratio=(1.0, chosen["ratio width"]),
        **{name: chosen[name] for name in ("misfit", "length", "across", "cheap", "noise")},
    )


@on_one_thread
def predicted(every: Sequence[Split], prior: Prior = PRIOR) -> list[Predicted]:
    """What a law expects of every split."""
    found = []
    for split in every:
        N, D, L = split.fitted
        runs, center = as_runs([N, D], 6 * N * D, L, None, None)
        forecast = fit_forecast(LOSS_FAMILY, runs, prior)
        N, D, L = split.held_out
        x = np.log(np.stack([N, D], axis=1)) - center
        found.append(Predicted(np.log(L), forecast.predict(x), forecast.deviation(x)))
    return found


def plain_error(split: Split) -> float:
    """Mean error of the published form, fitted as published."""
    N, D, L = split.fitted
    runs, center = as_runs([N, D], 6 * N * D, L, None, None)
    best = LOSS_FAMILY.fit(LOSS_FAMILY.published, runs, tolerance=1e-12, max_steps=400).best()
    N, D, L = split.held_out
    x = np.log(np.stack([N, D], axis=1)) - center
    return float(np.abs(np.exp(LOSS_FAMILY.predict(best[None], x)[0]) / L - 1).mean())


def score(every: Sequence[Split], found: Sequence[Predicted], left_out: str | None) -> float:
    """Mean log density of what was held out, without one data set or publication."""
    frame = pd.DataFrame(
        {
            "publication": [split.publication for split in every],
            "set": [split.data_set for split in every],
            "score": [one.score for one in found],
        }
    )
    kept = (frame["publication"] != left_out) & (frame["set"] != left_out)
    by_set = frame[kept].groupby(["publication", "set"])["score"].mean()
    return float(by_set.groupby(level=0).mean().mean())


def choose(
    every: Sequence[Split], found: Sequence[Sequence[Predicted]], left_out: str | None
) -> Prior:
    """The best, ``found`` being what each that was drawn predicts."""
    scores = [score(every, one, left_out) for one in found]
    return prior_of(drawn(int(np.argmax(scores))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    where = os.environ.get("CARBS_DATA")
    if not where:
        raise SystemExit("set CARBS_DATA to the folder of published measurements")
    every = list(splits(data_sets(Path(where))))
    plain = [plain_error(split) for split in every]
    sets = list(dict.fromkeys(split.data_set for split in every))
    publications = list(dict.fromkeys(split.publication for split in every))
    with ProcessPoolExecutor(arguments.processes) as executor:
        priors = [prior_of(drawn(seed)) for seed in range(N_PRIORS)]
        found = list(executor.map(partial(predicted, every), priors))
        left_out = [*dict.fromkeys([*sets, *publications]), None]
        chosen = {one: choose(every, found, one) for one in left_out}
        judged = dict(
            zip(left_out, executor.map(partial(predicted, every), chosen.values()), strict=True)
        )
    rows = []
    for one, prior in chosen.items():
        print(f"without {one}:" if one else "all:", prior)
    for fold in ("data set left out", "publication left out", "none left out"):
        for i, split in enumerate(every):
            by_fold = {"data": split.data_set, "publication": split.publication, "none": None}
            one = judged[by_fold[fold.split()[0]]][i]
            half = one.deviation * student.ppf(0.5 + LEVEL / 2, 5)
            rows.append(
                {
                    "fold": fold,
                    "data set": split.data_set,
                    "split": split.name,
                    "held out": len(one.y),
                    "error": one.error,
                    "plain": plain[i],
                    "ratio": one.error / plain[i],
                    "coverage": np.mean(np.abs(one.center - one.y) <= half),
                    "width": np.mean(np.exp(half) - np.exp(-half)),
                }
            )
    frame = pd.DataFrame(rows)
    print(frame.to_string(float_format=lambda value: f"{value:.4f}"))
    frame["kind"] = np.where(frame["split"].str.startswith("1/"), "by compute", "by number")
    for (fold, kind), part in frame.groupby(["fold", "kind"]):
        many = part[part["held out"] >= 15]
        print(
            f"{fold}, {kind}, {len(part)} splits: error over plain "
            f"{np.exp(np.log(part['ratio']).mean()):.3f}, worst {part['ratio'].max():.2f}; "
            f"coverage {part['coverage'].mean():.3f}, least of 15 runs or more "
            f"{many['coverage'].min():.2f}; width {100 * part['width'].mean():.1f}%"
        )


if __name__ == "__main__":
    main()
