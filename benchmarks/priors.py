"""What a law expects before any run says something, chosen on runs kept back.

    CARBS_DATA=... python benchmarks/priors.py

Priors are those of a coarse grid. Of those whose 90% intervals hold at least 90% of simulated laws,
the one is chosen that gives published runs kept back the best mean log density (each publication
counts alike, and so do its data sets and their splits); too wide an interval costs density. Every
data set is left out once, and every publication with all its sets: what is chosen without it is
judged on it. What is chosen from all of them is what the project ships; of the simulated laws it is
judged on others.

Splits fit the runs with at most 1/3, 1/10, 1/30 and 1/100 of the largest compute and predict all
the others; or 8, 12, 20 and 40 drawn of those at 1/10 or less, and predict those above it.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from carbs.analysis.laws.forecast import (
    PRIOR,
    Family,
    Forecast,
    Member,
    Prior,
    Runs,
    fit_forecast,
)
from carbs.analysis.laws.power import least_along_budget
from carbs.analysis.laws.power_fits import as_runs
from carbs.analysis.laws.power_forms import COMPUTE_FAMILY, LOSS_FAMILY
from carbs.pareto import pareto_front
from carbs.threads import on_one_thread

FACTORS, COUNTS = (3, 10, 30, 100), (8, 12, 20, 40)
LEVEL = 0.9
# What may be chosen: medians, deviations of logs, sizes. What else a prior has was varied too, and
# made less difference than the choice is uncertain by.
GRID: dict[str, Sequence[float]] = {
    "term": (0.3, 0.35),
    "term width": (0.25, 0.4, 0.6),
    "exponent width": (0.1, 0.2),
    "misfit": (2e-3, 4e-3),
}
# Seeds of simulated laws: to choose with, and to judge on what is chosen.
CHOOSING, JUDGING = range(40), range(200, 300)
# Of a form whose coefficients the runs alone tell, and a process on its residuals.
VAGUE = Prior(term=(0.3, 3.0), exponent=(0.3, 1.0), ratio=(1.0, 1.0))


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
        return float(np.mean(student.logpdf(z, LOSS_FAMILY.tail) - np.log(self.deviation)))

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


def priors() -> list[Prior]:
    """All of the grid."""
    return [
        replace(PRIOR, term=(term, width), exponent=(PRIOR.exponent[0], of_exponent), misfit=misfit)
        for term, width, of_exponent, misfit in product(*GRID.values())
    ]


@on_one_thread
def predicted(every: Sequence[Split], prior: Prior = PRIOR) -> list[Predicted]:
    """What a law expects of every split."""
    found = []
    for split in every:
        N, D, L = split.fitted
        runs = as_runs([N, D], 6 * N * D, L)
        forecast = fit_forecast(LOSS_FAMILY, runs, prior)
        N, D, L = split.held_out
        x = np.log(np.stack([N, D], axis=1)) - runs.center
        found.append(Predicted(np.log(L), forecast.predict(x), forecast.deviation(x)))
    return found


@dataclass(frozen=True)
class KnownLaw:
    """``E (1 + a (N/1e9)^-alpha + b (D/2e10)^-beta)``, drawn more widely than published ones lie.

    Attributes:
        noise: of a run's log loss.
        spread: deviation of the log of runs' tokens a parameter.
    """

    E: float
    a: float
    b: float
    alpha: float
    beta: float
    noise: float
    spread: float

    @staticmethod
    def drawn(rng: np.random.Generator) -> KnownLaw:
        a, b = np.exp(rng.uniform(math.log(0.1), math.log(0.6), 2))
        alpha, beta = rng.uniform(0.2, 0.5, 2)
        noise, spread = 10 ** rng.uniform(-3, -2.2), rng.choice([0.1, 0.3, 1.0])
        return KnownLaw(rng.uniform(1, 2.2), a, b, alpha, beta, noise, spread)

    def runs(self, compute: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n_params, n_tokens, loss), ``(3, n)``."""
        ratio = 20 * np.exp(rng.normal(0, self.spread, len(compute)))
        N = np.sqrt(compute / 6 / ratio)
        D = ratio * N
        loss = self.E * (1 + self.a * (N / 1e9) ** -self.alpha + self.b * (D / 2e10) ** -self.beta)
        return np.stack([N, D, loss * np.exp(self.noise * rng.normal(size=len(compute)))])

    def optimum(self, compute: float) -> float:
        """The best log N, where ``alpha a (N/1e9)^-alpha = beta b (D/2e10)^-beta``."""
        of_N = math.log(self.alpha * self.a) + self.alpha * math.log(1e9)
        of_D = math.log(self.beta * self.b) - self.beta * math.log(compute / 6 / 2e10)
        return (of_N - of_D) / (self.alpha + self.beta)


@on_one_thread
def held(prior: Prior, seeds: Sequence[int]) -> pd.DataFrame:
    """How often 90% intervals hold what simulated laws are, one row a law.

    Returns:
        loss: of runs at 10 and 100 times the largest compute of the fit; optimum: of the best log
            N at 1, 10 and 100 times; error: of that.
    """
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        law = KnownLaw.drawn(rng)
        n, least, decades = rng.choice([30, 60, 120]), rng.uniform(17.5, 19.5), rng.uniform(2, 4)
        C = 10 ** (least + decades * rng.random(n) ** 1.3)
        N, D, L = law.runs(C, rng)
        runs = as_runs([N, D], C, L)
        forecast = fit_forecast(LOSS_FAMILY, runs, prior)
        N, D, L = law.runs(C.max() * np.repeat([10.0, 100.0], 4), rng)
        low, high = forecast.interval(np.log(np.stack([N, D], axis=1)) - runs.center, LEVEL)
        loss = np.mean((low <= np.log(L)) & (np.log(L) <= high))
        budgets = C.max() * np.array([1.0, 10.0, 100.0])
        best, low, high = np.transpose([optimum(forecast, runs.center, C) for C in budgets])
        truth = np.array([law.optimum(C) for C in budgets])
        inside = np.mean((low <= truth) & (truth <= high))
        rows.append({"loss": loss, "optimum": inside, "error": np.mean(np.abs(best - truth))})
    return pd.DataFrame(rows)


def optimum(forecast: Forecast, center: np.ndarray, compute: float) -> tuple[float, float, float]:
    """The best log N and its interval."""
    log_ND = math.log(compute / 6)

    def along(log_N: np.ndarray) -> np.ndarray:
        return np.stack([log_N, log_ND - log_N], axis=-1) - center

    return least_along_budget(forecast, along, 0.5 * log_ND, LEVEL)


@on_one_thread
def members(split: Split) -> dict[str, float]:
    """Mean errors of simpler laws, of which a forecast should be no worse than the best."""
    N, D, L = split.fitted
    runs, front = as_runs([N, D], 6 * N * D, L), pareto_front(N * D, L)
    of_front = as_runs([N[front] * D[front]], 6 * N[front] * D[front], L[front])
    residuals = fit_forecast(LOSS_FAMILY, runs, VAGUE)
    N, D, L = split.held_out
    x = np.log(np.stack([N, D], axis=1)) - runs.center
    on_front = np.log(N * D)[:, None] - of_front.center
    published = LOSS_FAMILY.published
    tied = replace(published, held={4: 0.0})
    expected = {
        "plain": as_published(LOSS_FAMILY, published, runs, x),
        "tied": as_published(LOSS_FAMILY, tied, runs, x),
        "front": as_published(COMPUTE_FAMILY, COMPUTE_FAMILY.published, of_front, on_front),
        "residuals": residuals.predict(x),
    }
    return {name: float(np.abs(np.exp(y) / L - 1).mean()) for name, y in expected.items()}


def as_published(family: Family, member: Member, runs: Runs, x: np.ndarray) -> np.ndarray:
    best = family.fit(member, runs, tolerance=1e-12, max_steps=400).best()
    return family.predict(best[None], x)[0]


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


@cache
def holds(prior: Prior) -> bool:
    """Whether a prior's intervals of losses and of optima hold simulated laws often enough."""
    return bool((held(prior, CHOOSING)[["loss", "optimum"]].mean() >= LEVEL).all())


def choose(
    every: Sequence[Split], found: Mapping[Prior, Sequence[Predicted]], left_out: str | None
) -> Prior:
    """The best, ``found`` being what each expects."""
    scores = {prior: score(every, one, left_out) for prior, one in found.items()}
    return next(prior for prior in sorted(scores, key=scores.__getitem__)[::-1] if holds(prior))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    where = os.environ.get("CARBS_DATA")
    if not where:
        raise SystemExit("set CARBS_DATA to the folder of published measurements")
    every = list(splits(data_sets(Path(where))))
    of_members = [members(split) for split in every]
    sets = list(dict.fromkeys(split.data_set for split in every))
    publications = list(dict.fromkeys(split.publication for split in every))
    with ProcessPoolExecutor(arguments.processes) as executor:
        found = dict(zip(priors(), executor.map(partial(predicted, every), priors()), strict=True))
    chosen = {one: choose(every, found, one) for one in dict.fromkeys([*sets, *publications, None])}
    for one, prior in chosen.items():
        print(f"without {one}:" if one else "all:", prior)
        if one is None:
            others = held(prior, JUDGING)
            print("other simulated laws:", others.mean().round(3).to_dict())
            print("as shipped" if prior == PRIOR else f"shipped is another: {PRIOR}")
    rows = []
    for fold in ("data set left out", "publication left out", "none left out"):
        for i, split in enumerate(every):
            by_fold = {"data": split.data_set, "publication": split.publication, "none": None}
            one = found[chosen[by_fold[fold.split()[0]]]][i]
            half = one.deviation * student.ppf(0.5 + LEVEL / 2, LOSS_FAMILY.tail)
            rows.append(
                {
                    "fold": fold,
                    "data set": split.data_set,
                    "split": split.name,
                    "held out": len(one.y),
                    "error": one.error,
                    "plain": of_members[i]["plain"],
                    "ratio": one.error / of_members[i]["plain"],
                    "best": min(of_members[i], key=of_members[i].__getitem__),
                    "over best": one.error / min(of_members[i].values()),
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
            f"{many['coverage'].min():.2f}; width {100 * part['width'].mean():.1f}%; over the best "
            f"member {np.exp(np.log(part['over best']).mean()):.2f}, worst of 15 runs or more "
            f"{many['over best'].max():.2f}"
        )


if __name__ == "__main__":
    main()
