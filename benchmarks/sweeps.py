"""Searches of the synthetic task, made once and kept as JSON, for the analysis to be judged on.

    OMP_NUM_THREADS=1 python benchmarks/sweeps.py FOLDER --seeds 50

The task is that of :func:`tasks.synthetic` with N and D unbounded above, so that a plan at a
hundred times the cap has somewhere to go.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from tasks import synthetic

from carbs import CARBS, LogSpace, Param

N_TRIALS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=50)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.seeds)


def make(folder: Path, n_seeds: int) -> list[Path]:
    """The searches that the folder lacks; the files of all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.json" for seed in range(n_seeds)]
    task = synthetic()
    unbounded = {"N": Param("N", LogSpace(min=1e7), 3e7), "D": Param("D", LogSpace(min=2e8), 6e8)}
    params = [unbounded.get(param.name, param) for param in task.params]
    for seed, path in enumerate(paths):
        if path.exists():
            continue
        start = time.process_time()
        optimizer = CARBS(params, max_cost=task.cap, seed=seed)
        rng = np.random.default_rng([seed, 1])
        for _ in range(N_TRIALS):
            suggestion = optimizer.suggest()
            values = suggestion.params
            loss, cost = task.loss(values), task.cost(values)
            loss += task.noise * rng.standard_normal()
            if cost > task.cap:
                optimizer.observe_failure(suggestion, reason="over the cap", cost=task.cap)
            elif task.fails(values):
                optimizer.observe_failure(suggestion, reason="diverged", cost=0.3 * cost)
            else:
                optimizer.observe(suggestion, output=loss, cost=cost)
        optimizer.save(path)
        print(f"seed {seed}: {time.process_time() - start:.1f} CPU s", flush=True)
    return paths


if __name__ == "__main__":
    main()
