"""What the laws are worth on measurements that others published.

    CARBS_DATA=... python benchmarks/extrapolation.py

A split "1/f" fits the runs with at most 1/f of the largest compute and predicts all the others.
Times are CPU seconds of one process. Seven data sets, each left out of what is usual: priors.py;
runs that are not tuned: untuned.py.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from carbs.analysis import (
    UndeterminedLawWarning,
    backtest,
    datasets,
    effective_tokens,
    fit_accuracy_law,
    fit_expert_law,
    fit_loss_law,
    fit_mixing_law,
    fit_optimum_law,
    regret,
)
from carbs.analysis.laws.experts import worth_of_expansion
from carbs.analysis.laws.repetition import EXCESS, REPETITION, Repetition, best_params
from carbs.spaces import FloatArray

CONSOLE = Console(width=110)
# Li et al. 2025: lr = 1.79 N^-0.713 D^0.307, batch in tokens = 0.58 D^0.571.
PUBLISHED_OPTIMA = {"lr": (1.79, -0.713, 0.307), "batch_size_tokens": (0.58, 0.0, 0.571)}
N_DEAREST_CELLS = 10


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    where = os.environ.get("CARBS_DATA")
    if not where:
        raise SystemExit("set CARBS_DATA to the folder of published measurements")
    data = Path(where)
    chinchilla = pd.read_csv(data / "chinchilla.csv").query("keep_epoch_filter == 1")
    steplaw = pd.read_csv(data / "steplaw_dense.csv")
    refit(chinchilla)
    many_rows()
    extrapolated_loss(chinchilla)
    best_of_cells(steplaw)
    checkpoints()
    misspecified()
    experts()
    extrapolated_optimum(steplaw)
    mixtures(pd.read_csv(data / "regmix_1m.csv"))
    accuracy()
    repetition()
    repeated_runs()


def refit(runs: pd.DataFrame) -> None:
    start = time.process_time()
    law = fit_loss_law(runs["n_params"], runs["n_tokens"], runs["loss"], n_resamples=1000)
    seconds = time.process_time() - start
    r = np.abs(np.log(law.curve(runs["n_params"], runs["n_tokens"]) / runs["loss"]))
    objective = np.where(r < 1e-3, 0.5 * r * r, 1e-3 * (r - 0.5e-3)).sum()
    rows = [
        [row.coefficient, f"{row.estimate:.4g}", f"{row.low:.4g} to {row.high:.4g}"]
        for row in law.summary().itertuples()
    ]
    show(
        f"Chinchilla refit: {len(runs)} runs, objective {objective:.8f} (published 0.00101827), "
        f"with 1,000 resamples and the forecast {seconds:.1f} CPU s",
        ["coefficient", "estimate", "90% interval"],
        rows,
    )


def many_rows(n: int = 2000) -> None:
    """How long a law of many runs takes, each run by itself or all checkpoints of a hundred."""
    rng = np.random.default_rng(0)
    N, ratio = 10 ** rng.uniform(7.5, 9.5, n), 20 * np.exp(rng.normal(0, 1, n))
    D = ratio * N
    L = 1.7 + 400 * N**-0.34 + 1500 * D**-0.36
    L *= np.exp(0.003 * rng.standard_normal(n))
    rows = []
    for name, groups in {"runs": None, "checkpoints of 100 runs": np.arange(n) % 100}.items():
        start = time.process_time()
        fit_loss_law(N, D, L, groups)
        rows.append([f"{n} {name}", f"{time.process_time() - start:.1f} s"])
    show("Many rows (bar: 2 s)", ["rows", "CPU time"], rows)


def extrapolated_loss(runs: pd.DataFrame) -> None:
    columns = runs["n_params"], runs["n_tokens"]
    tested = backtest(fit_loss_law, *columns, loss=runs["loss"], factors=(10, 30, 100))
    plain = []
    for factor in (10, 30, 100):
        cheap = runs["flops"] <= runs["flops"].max() / factor
        law = fit_loss_law(*(column[cheap] for column in columns), runs["loss"][cheap])
        predicted = law.curve(*(column[~cheap] for column in columns))
        plain.append(np.abs(predicted / runs["loss"][~cheap] - 1).mean())
    rows = [
        [*splits_row(split), f"{100 * error:.2f}%"]
        for split, error in zip(tested.splits.itertuples(), plain, strict=True)
    ]
    show(
        "Chinchilla, loss extrapolated (bars: error at most 0.75%, coverage of the 90% interval "
        "85 to 97%, width at most 8% at 1/100)",
        [*SPLIT_COLUMNS, "published form alone"],
        rows,
    )
    show(
        "The same by how far beyond the fit",
        ["extrapolation", *SPLIT_COLUMNS[1:]],
        [splits_row(row, "") for row in tested.by_extrapolation.itertuples()],
    )


def best_of_cells(runs: pd.DataFrame) -> None:
    best = runs.groupby(["n_params", "n_tokens"], as_index=False)["loss"].min()
    columns = best["n_params"], best["n_tokens"]
    tested = backtest(fit_loss_law, *columns, loss=best["loss"], factors=(3, 5, 10))
    show(
        "Step-law grid, best loss of each of its 17 cells (too few to learn widths from)",
        SPLIT_COLUMNS,
        [splits_row(row) for row in tested.splits.itertuples()],
    )


def checkpoints() -> None:
    """Rows of a few models at several budgets each: a model is never on both sides."""
    runs = datasets.load("porian").query(
        "hparams == 'tuned' and warmup == 'short' and decay == 'const' "
        "and param_count == 'standard' and n_tokens >= 10 * n_params"
    )
    for corpus, part in runs.groupby("dataset"):
        N, D = part["n_params"], part["n_tokens"]
        tested = backtest(fit_loss_law, N, D, loss=part["loss"], groups=N)
        show(
            f"Checkpoints of the models of Porian et al. on {corpus}",
            SPLIT_COLUMNS,
            [splits_row(split) for split in tested.splits.itertuples()],
        )


def misspecified(n_worlds: int = 12) -> None:
    """Runs whose true law is none of the fitted forms: coverage over random worlds."""
    tables = []
    for seed in range(n_worlds):
        N, D, L = world(seed)
        tables.append(
            backtest(fit_loss_law, N, D, loss=L, factors=(10, 30, 100)).splits.assign(world=seed)
        )
    every = pd.concat(tables)
    rows = []
    for factor, splits in every.groupby(level=0):
        mean = splits.mean()
        rows.append(
            [
                f"1/{factor:.0f}",
                f"{len(splits)} worlds",
                f"{100 * mean.mean_abs_error:.2f}%",
                f"{100 * mean.coverage:.0f}% ({100 * splits.coverage.min():.0f} at least)",
                f"{100 * mean.mean_width:.1f}%",
            ]
        )
    show(
        "Synthetic runs off the law: coupled terms, drifting exponents, cheap runs undertrained, "
        "ratios mistuned",
        ["split", "of", "mean error", "coverage", "mean width"],
        rows,
    )


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.choice([60, 120, 240]))
    decades = rng.uniform(2.5, 4)
    C = 10 ** (rng.uniform(17.5, 19) + decades * rng.random(n) ** 1.3)
    ratio = 20 * np.exp(rng.normal(0, 1, n))
    N = np.sqrt(C / 6 / ratio)
    D = ratio * N
    E = rng.uniform(1.2, 2.2)
    alpha, beta = rng.uniform(0.25, 0.5, size=2)
    a, b = rng.uniform(0.3, 0.9, size=2)
    u, v = a * (N / 1e8) ** -alpha, b * (D / 2e9) ** -beta
    kind = seed % 4
    if kind == 0:
        gamma = rng.uniform(0.6, 1.4)
        L = E + (u ** (1 / gamma) + v ** (1 / gamma)) ** gamma
    elif kind == 1:
        L = E + u * np.exp(-rng.uniform(-0.02, 0.02) * np.log(N / 1e8) ** 2 / math.log(10)) + v
    elif kind == 2:
        L = (E + u + v) * (1 + rng.uniform(0, 0.02) * (C / C.min()) ** -rng.uniform(0.2, 0.6))
    else:
        L = (E + u + v) * (1 + rng.uniform(0, 0.01) * np.log10(D / N / 20) ** 2)
    noise = 10 ** rng.uniform(-3, -2.2)
    return N, D, L * np.exp(noise * rng.standard_t(5, n))


def experts(n_worlds: int = 20, n: int = 80) -> None:
    """Mixtures of experts of a known law, every other draw with granularity, fitted at 1/10."""

    def truth(N: np.ndarray, X: np.ndarray, D: np.ndarray, G: np.ndarray) -> np.ndarray:
        x, g = np.log(worth_of_expansion(X)), np.log(G)
        n, d = np.log(N / 3e8), np.log(D / 6e9)
        of_N = 0.4 * np.exp(-0.32 * n - 0.15 * x + 0.01 * n * x - 0.1 * g)
        return np.asarray(1.7 + of_N + 0.45 * np.exp(-0.29 * d - 0.06 * x + 0.01 * d * x))

    found = []
    for seed in range(n_worlds):
        rng = np.random.default_rng(seed)
        N = np.sqrt(10 ** rng.uniform(18, 21, n) / 6 / (20 * np.exp(rng.normal(0, 1, n))))
        D = 20 * N * np.exp(rng.normal(0, 1, n))
        X, G = rng.choice([1, 4, 8, 16, 32], n), rng.choice([1, 2, 4, 8], n)
        with_granularity = seed % 2 == 0
        G = G if with_granularity else np.ones(n)
        L = truth(N, X, D, G) * np.exp(0.003 * rng.standard_normal(n))
        C = 6 * N * D
        cheap = C.max() / 10 >= C
        given = {"granularity": G[cheap]} if with_granularity else {}
        law = fit_expert_law((N * X)[cheap], N[cheap], D[cheap], L[cheap], n_resamples=2, **given)
        dear = [x[~cheap] for x in ((N, X, D, G) if with_granularity else (N, X, D))]
        low, high = law.interval(*dear)
        budget = 10 * C[cheap].max()
        g = 4.0 if with_granularity else 1.0
        own = {"granularity": g} if with_granularity else {}
        low_N, high_N = law.compute_optimal(budget, expansion=16, **own).n_active_interval
        sizes = np.geomspace(1e7, 1e12, 20001)
        losses = truth(sizes, np.float64(16), budget / 6 / sizes, np.float64(g))
        best = sizes[np.argmin(losses)]
        found.append(
            {
                "error": np.abs(law.predict(*dear) / L[~cheap] - 1).mean(),
                "covered": np.mean((low <= L[~cheap]) & (L[~cheap] <= high)),
                "width": np.mean(high / low - 1),
                "optimum": low_N <= best <= high_N,
            }
        )
    frame = pd.DataFrame(found)
    mean = 100 * frame.mean()
    show(
        "Mixtures of experts, simulated: fitted at 1/10 of the compute",
        ["draws", "mean error", "coverage", "mean width", "optimum covered"],
        [
            [
                str(n_worlds),
                f"{mean['error']:.2f}%",
                f"{mean['covered']:.0f}% ({100 * frame['covered'].min():.0f} at least)",
                f"{mean['width']:.1f}%",
                f"{mean['optimum']:.0f}%",
            ]
        ],
    )


def extrapolated_optimum(runs: pd.DataFrame) -> None:
    names, scales = list(PUBLISHED_OPTIMA), ["n_params", "n_tokens"]
    cells = sorted((cell for _, cell in runs.groupby(scales)), key=lambda c: c["flops"].iloc[0])
    dearest = cells[-N_DEAREST_CELLS:]
    rows, exponents = [], []
    for factor in (10, 20, 1):
        cheap = runs[runs["flops"] <= runs["flops"].max() / factor]
        law = fit_optimum_law(cheap, names, scales)
        regrets = []
        for cell in dearest:
            at = {scale: float(cell[scale].iloc[0]) for scale in scales}
            params = {name: float(value) for name, value in law.predict(**at).items()}
            regrets.append(regret(cell, params))
        rows.append(
            [
                f"1/{factor}" if factor > 1 else "all cells",
                str(cheap.groupby(scales).ngroups),
                f"{100 * np.mean(regrets):.3f}%",
                f"{100 * np.max(regrets):.3f}%",
            ]
        )
        for row in law.summary().itertuples():
            name, scale = row.coefficient.split(" ~ ")
            published = PUBLISHED_OPTIMA[name][1 + scales.index(scale)]
            exponents.append(
                [
                    rows[-1][0],
                    row.coefficient,
                    f"{row.estimate:.3f}",
                    f"{row.low:.3f} to {row.high:.3f}",
                    f"{published:.3f}{'' if row.low <= published <= row.high else ' outside'}",
                ]
            )
    regrets = []
    for cell in dearest:
        N, D = (float(cell[scale].iloc[0]) for scale in scales)
        regrets.append(
            regret(cell, {name: k * N**a * D**b for name, (k, a, b) in PUBLISHED_OPTIMA.items()})
        )
    rows.append(
        ["published law", "17", f"{100 * np.mean(regrets):.3f}%", f"{100 * np.max(regrets):.3f}%"]
    )
    show(
        "Step-law grid: regret of the predicted optimum over the ten dearest cells (bars: 0.11% at "
        "1/10, 0.12% at 1/20)",
        ["fitted to", "cells", "mean regret", "largest"],
        rows,
    )
    show(
        "Exponents of the optima",
        ["fitted to", "exponent", "estimate", "90% interval", "published"],
        exponents,
    )


def mixtures(runs: pd.DataFrame, n_folds: int = 5) -> None:
    W = runs[[name for name in runs if name.startswith("w_")]].to_numpy()
    fold = np.random.default_rng(0).permutation(len(W)) % n_folds
    rows, means = [], []
    for name in [name for name in runs if name.startswith("loss_")]:
        loss = runs[name].to_numpy()
        ranks, covered = [], []
        for k in range(n_folds):
            held = fold == k
            law = fit_mixing_law(W[~held], loss[~held])
            ranks.append(spearmanr(law.predict(W[held]), loss[held]).statistic)
            low, high = law.interval(W[held])
            covered.append(np.mean((low <= loss[held]) & (loss[held] <= high)))
        means.append(np.mean(ranks))
        rows.append(
            [
                name.removeprefix("loss_"),
                f"{means[-1]:.4f}",
                f"{min(ranks):.4f}",
                f"{100 * np.mean(covered):.0f}%",
            ]
        )
    rows.append(["mean", f"{np.mean(means):.4f}", "", ""])
    show(
        "RegMix, five-fold over 512 mixtures: Spearman rank correlation (bars: Pile-CC 0.993, mean "
        "0.99)",
        ["held-out loss", "mean", "worst fold", "90% interval covers"],
        rows,
    )


def accuracy(n_tasks: int = 200) -> None:
    """Known sigmoids, measured on questions: the better models held out, some tasks not risen."""
    found = []
    for seed in range(n_tasks):
        rng = np.random.default_rng(seed)
        L = np.sort(rng.uniform(rng.uniform(0.4, 0.9), 1.7, 24))[::-1]
        ceiling, middle, width = rng.uniform(0.85, 1), rng.uniform(0.5, 1.2), rng.uniform(0.08, 0.2)
        truth = 0.25 + (ceiling - 0.25) / (1 + np.exp((L - middle) / width))
        measured = rng.binomial(2000, truth) / 2000
        k = int(rng.choice([10, 14, 18]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndeterminedLawWarning)
            law = fit_accuracy_law(L[:k], measured[:k])
        low, high = law.interval(L[k:])
        row = law.summary().set_index("coefficient").loc["ceiling"]
        found.append(
            {
                "risen": "midpoint" not in law.undetermined,
                "error": np.abs(law.predict(L[k:]) - measured[k:]).mean(),
                "covered": np.mean((low <= measured[k:]) & (measured[k:] <= high)),
                "width": (high - low).mean(),
                "ceiling": row["low"] <= ceiling <= row["high"],
            }
        )
    frame = pd.DataFrame(found)
    rows = []
    parts = {"all": frame, "risen": frame[frame["risen"]], "not yet": frame[~frame["risen"]]}
    for name, part in parts.items():
        mean = part.mean()
        rows.append(
            [
                name,
                str(len(part)),
                f"{100 * mean['error']:.1f} points",
                f"{100 * mean['covered']:.0f}%",
                f"{100 * mean['width']:.1f} points",
                f"{100 * mean['ceiling']:.0f}%",
            ]
        )
    show(
        "Accuracy over answer loss, simulated: the first 10 to 18 of 24 models predict the others",
        ["above chance", "tasks", "mean error", "coverage", "mean width", "ceiling covered"],
        rows,
    )


def repetition(n_draws: int = 12) -> None:
    """Known laws of runs that repeat their tokens, up to 40 times: R* and what it foretells."""

    def truth(N: FloatArray, D: FloatArray) -> FloatArray:
        return np.asarray(1.7 + 400 * N**-0.34 + 1500 * D**-0.36)

    rows = []
    best = best_params(400, 1500, 0.34, 0.36)
    far = np.array([3e9]), np.array([1e12]), np.array([2.5e10])
    for tokens, params in ((5, EXCESS), (45, EXCESS), (REPETITION, 2), (REPETITION, 20)):
        worn = Repetition(best, tokens, params)
        aim = truth(*worn.effective(*far))
        found = []
        for seed in range(n_draws):
            rng = np.random.default_rng(seed)
            N = 10 ** rng.uniform(7, 9, 48)
            D = N * 10 ** rng.uniform(0.7, 2.3, 48)
            unique = D / rng.choice([1, 1, 3, 8, 20, 40], 48)
            L = truth(*worn.effective(N, D, unique)) * np.exp(0.003 * rng.standard_normal(48))
            law = fit_loss_law(N, D, L, unique_tokens=unique, n_resamples=2)
            alone = fit_loss_law(N, effective_tokens(D, unique), L, n_resamples=2)
            told = law.repetition
            found.append(
                {
                    "tokens": told.tokens,
                    "tokens held": _holds(told.tokens_interval, tokens),
                    "params": told.params,
                    "params held": _holds(told.params_interval, params),
                    "error": abs(law.predict(*far) / aim - 1)[0],
                    "alone": abs(alone.predict(far[0], effective_tokens(*far[1:])) / aim - 1)[0],
                }
            )
        frame = pd.DataFrame(found)
        row = [f"{tokens:.3g}", f"{params:.3g}"]
        for name in ("tokens", "params"):
            held = 100 * frame[f"{name} held"].mean()
            row.append(f"{frame[name].median():.3g} ({held:.0f}%)")
        rows.append([*row, *(f"{100 * frame[name].mean():.2f}%" for name in ("error", "alone"))])
    show(
        "Runs that repeat, simulated: the loss is after 40 epochs at 15 times the compute",
        [
            "R* of tokens",
            "of parameters",
            "fitted (held)",
            "fitted (held)",
            "error",
            "tokens alone",
        ],
        rows,
    )


def _holds(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def repeated_runs() -> None:
    """Muennighoff et al. 2023, without runs whose loss had turned upward or was still falling."""
    runs = datasets.load("muennighoff").astype(float)
    fewer = runs.sort_values("n_tokens").groupby(["n_params", "unique_tokens"])["loss"]
    lowest = fewer.cummin().reindex(runs.index)
    epochs = runs["n_tokens"] / runs["unique_tokens"]
    kept = (runs["loss"] <= lowest) & (runs["n_params"] > 1e8) & (epochs <= 100)
    runs = runs[kept & (runs["n_tokens"] >= 2 * runs["n_params"])]
    C = runs["n_params"] * runs["n_tokens"]
    rows = []
    for factor in (3, 10, 30, 100):
        seen = factor * C <= C.max()
        few, dear = runs[seen], runs[~seen]
        of_few, of_dear = few["unique_tokens"], dear["unique_tokens"]
        row = [f"1/{factor}", str(len(few)), str(len(dear))]
        fresh = fit_loss_law(few["n_params"], few["n_tokens"], few["loss"], n_resamples=2)
        worth = effective_tokens(few["n_tokens"], of_few)
        alone = fit_loss_law(few["n_params"], worth, few["loss"], n_resamples=2)
        both = fit_loss_law(
            few["n_params"], few["n_tokens"], few["loss"], unique_tokens=of_few, n_resamples=2
        )
        at = dear["n_params"], dear["n_tokens"]
        for expected in (
            fresh.predict(*at),
            alone.predict(at[0], effective_tokens(at[1], of_dear)),
            both.predict(*at, of_dear),
        ):
            error = np.abs(expected / dear["loss"] - 1)
            row.append(f"{100 * error.mean():.2f} ({100 * error.max():.0f})")
        low, high = both.interval(*at, unique_tokens=of_dear)
        held = (low <= dear["loss"]) & (dear["loss"] <= high)
        row.append(f"{100 * held.mean():.0f} ({100 * np.mean((high - low) / dear['loss']):.1f})")
        told = both.repetition
        rows.append([*row, f"{told.tokens:.0f}, {told.params:.1f}"])
    show(
        "Runs that repeat, of Muennighoff et al.: mean error in % (worst)",
        ["split", "fitted", "held out", "as fresh", "tokens alone", "both", "held (width)", "R*"],
        rows,
    )


SPLIT_COLUMNS = ["split", "fitted", "held out", "mean abs error", "bias", "coverage", "mean width"]


def splits_row(split: object, before: str = "1/") -> list[str]:
    label, fitted, held_out, error, bias, coverage, width = tuple(split)  # type: ignore[arg-type]
    label = f"{before}{label:g}" if before else str(label)
    return [
        label,
        str(fitted),
        str(held_out),
        f"{100 * error:.2f}%",
        f"{100 * bias:+.2f}%",
        f"{100 * coverage:.1f}%",
        f"{100 * width:.2f}%",
    ]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
