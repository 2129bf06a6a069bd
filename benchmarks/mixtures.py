"""Do mixtures that were learned on small models hold for larger ones? Real runs at three sizes.

    python benchmarks/mixtures.py             # the laws, on the recorded table
    python benchmarks/mixtures.py --record    # the table, anew: an hour and a half of one core

The runs are of the reference job, on eight kinds of text that lie in any environment of this
project, over random mixtures of these: what a run costs grows eightfold from one size to the next.
The losses are on held-out text of each kind, in bits per byte.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carbs.analysis import fit_mixing_law, fit_scaled_mixing_law
from carbs.analysis.laws.mixing import Mixtures

TABLE = Path(__file__).parents[1] / "analysis" / "data" / "small_lm_mixtures.csv"
DOMAINS = ("code", "prose", "exercises", "headers", "algebra", "locales", "readmes", "stubs")


@dataclass(frozen=True)
class Size:
    """A size of model, with the learning rate that suits it.

    ``n_runs`` are the first of ``n_mixtures`` that are drawn.
    """

    width: int
    depth: int
    learning_rate: float
    tokens: int
    n_mixtures: int
    n_runs: int


SIZES = (
    Size(32, 1, 0.04, 262_144, 160, 160),
    Size(64, 1, 0.02, 1_048_576, 64, 64),
    Size(64, 2, 0.01, 4_194_304, 24, 16),
)


def mixtures(n: int, seed: int) -> np.ndarray:
    """Dirichlet's, from nearly equal shares to nearly one kind alone, shape ``(n, 8)``."""
    rng = np.random.default_rng(seed)
    sharpness = 10 ** rng.uniform(-1, 0.7, n)
    drawn = np.array([rng.dirichlet(np.full(len(DOMAINS), a)) for a in sharpness])
    rounded = np.round(drawn, 4)
    rounded[np.arange(n), rounded.argmax(axis=1)] += 1 - rounded.sum(axis=1)
    return np.asarray(np.round(rounded, 4))


def sources() -> dict[str, str]:
    """Where the text of each kind lies."""
    import torch

    packages = Path(torch.__file__).parents[1]
    return {
        "code": "builtin",
        "prose": "builtin",
        "exercises": "builtin",
        "headers": f"{packages}/torch/include/**/*.h",
        "algebra": f"{packages}/sympy/**/*.py",
        "locales": f"{packages}/sphinx/locale/**/*.po",
        "readmes": f"{packages}/*.dist-info/METADATA",
        "stubs": f"{packages}/mypy/typeshed/**/*.pyi",
    }


def record(size: Size, number: int, weights: np.ndarray, shared: Path) -> dict[str, Any]:
    """One run, a row of the table."""
    from carbs.launchers.job.protocol import Job
    from carbs.launchers.lm.train import train

    mix = {name: float(w) for name, w in zip(DOMAINS, weights, strict=True)}
    params = {
        "width": size.width,
        "depth": size.depth,
        "learning_rate": size.learning_rate,
        "tokens": size.tokens,
        "mix": mix,
    }
    settings = {"head_width": 16, "data": sources(), "contamination": False, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        found = train(params, Job(Path(folder), shared, seed=number, settings=settings))
    held_out: dict[str, float] = found.metrics["held_out_bits_per_byte"]
    return (
        {"n_params": found.metrics["n_params"], "n_tokens": found.metrics["tokens"]}
        | {f"w_{name}": w for name, w in mix.items()}
        | {f"loss_{name}": round(held_out[name], 5) for name in DOMAINS}
        | {"answers": round(found.output, 5), "seconds": round(found.cost, 2)}
    )


def wanted() -> Iterator[tuple[Size, int, np.ndarray]]:
    for i, size in enumerate(SIZES):
        for number, weights in enumerate(mixtures(size.n_mixtures, seed=i)[: size.n_runs]):
            yield size, 1000 * i + number, weights


def record_all(jobs: int, shared: Path) -> None:
    """Appends what the table lacks; move it away to begin anew."""
    done = len(pd.read_csv(TABLE)) if TABLE.exists() else 0
    with ProcessPoolExecutor(jobs) as pool:
        runs = [pool.submit(record, *one, shared) for one in list(wanted())[done:]]
        for run in runs:
            row = pd.DataFrame([run.result()])
            row.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)


def runs() -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """The table, its mixtures, and which of the sizes each run is of."""
    table = pd.read_csv(TABLE)
    weights = table[[f"w_{name}" for name in DOMAINS]].set_axis(list(DOMAINS), axis=1)
    size = table.groupby(["n_params", "n_tokens"]).ngroup().to_numpy()
    return table, weights, size


def foretold(target: int, known: tuple[int, ...], n: int, draw: int, domain: str) -> dict[str, Any]:
    """One kind's losses at a size, of runs at other sizes and some at this one."""
    table, weights, size = runs()
    there = np.flatnonzero(size == target)
    some = np.random.default_rng(draw).choice(there, n, replace=False)
    held = np.setdiff1d(there, some)
    seen = np.concatenate([np.flatnonzero(np.isin(size, known)), some])
    loss = table[f"loss_{domain}"]
    measured = loss.to_numpy()[held]
    if len(np.unique(size[seen])) > 1:
        scaled = fit_scaled_mixing_law(
            weights.iloc[seen], loss.iloc[seen], table["n_params"][seen], table["n_tokens"][seen]
        )
        law: Mixtures = scaled.at(*table.loc[held[0], ["n_params", "n_tokens"]])
    else:
        law = fit_mixing_law(weights.iloc[seen], loss.iloc[seen])
    found = {"rank correlation": law.rank_correlation(weights.iloc[held], measured)}
    if target in size[seen] or len(np.unique(size[seen])) > 1:
        low, high = law.interval(weights.iloc[held])
        found["error, %"] = 100 * np.abs(law.predict(weights.iloc[held]) / measured - 1).mean()
        found["holds, %"] = 100 * np.mean((low <= measured) & (measured <= high))
    return found


def laws(jobs: int, n_draws: int = 6) -> None:
    _, _, size = runs()
    counts = np.bincount(size).tolist()
    print("runs of each size:", counts)
    asked = [(1, (0,), n) for n in (0, 4, 10, 20)] + [(1, (), 20)]
    asked += [(2, (0,), n) for n in (0, 4)] + [(2, (0, 1), n) for n in (0, 4)]
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for target, known, n in asked:
            calls = [
                pool.submit(foretold, target, known, n, draw, domain)
                for domain in DOMAINS
                for draw in range(n_draws if n else 1)
            ]
            mean = pd.DataFrame([call.result() for call in calls]).mean()
            fitted = " + ".join(
                [f"{counts[i]} of size {i}" for i in known] + [f"{n} of it"] * (n > 0)
            )
            rows.append({"size": target, "fitted to": fitted} | mean.round(3).to_dict())
    print(pd.DataFrame(rows).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--shared", type=Path, help="a folder for prepared text, to go on with")
    parsed = parser.parse_args()
    if parsed.record:
        os.nice(19)
        shared = parsed.shared or Path(tempfile.mkdtemp())
        record_all(parsed.jobs, shared)
    else:
        laws(parsed.jobs)


if __name__ == "__main__":
    main()
