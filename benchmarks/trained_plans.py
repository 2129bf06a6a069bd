"""Is the plan of a demo's sweep any good? Trains it, beside other ways of planning and by hand.

    python benchmarks/trained_plans.py FOLDER [FOLDER ...] [--cost 100]
    python benchmarks/trained_plans.py --by-hand

Each FOLDER is one of ``carbs demo``. What ``carbs.analysis.plan`` names for the cost is trained,
and the best of each way of planning, and what came out is printed beside what was expected.
``--by-hand`` trains configurations that nobody planned, at about 12 and 100 seconds: how good a
plan could be. Losses are the same on every run, seconds are those of the machine. A hundred seconds
each, on one core; ``--jobs`` at once.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

from carbs.analysis import plan
from carbs.display import in_a_line
from carbs.launchers.job.protocol import Job
from carbs.launchers.lm.train import train
from carbs.spaces import Params

SETTINGS = {"head_width": 16}  # as in launchers/demo.yaml
MIX = {"code": 0.14, "prose": 0.45, "exercises": 0.41}
# Width, depth, learning rate, batch size, tokens.
BY_HAND: list[tuple[int, int, float, int, int]] = [
    (32, 1, 0.041, 7, 1_000_000),
    (32, 1, 0.02, 7, 1_000_000),
    (64, 1, 0.03, 7, 500_000),
    (64, 1, 0.02, 7, 600_000),
    (64, 1, 0.014, 7, 620_000),
    (64, 1, 0.01, 4, 620_000),
    (64, 2, 0.015, 7, 400_000),
    (96, 1, 0.02, 7, 400_000),
    (128, 1, 0.015, 7, 300_000),
    (32, 1, 0.0456, 9, 8_538_449),
    (48, 1, 0.03, 8, 6_500_000),
    (64, 1, 0.014, 8, 4_800_000),
    (64, 1, 0.02, 8, 4_800_000),
    (64, 2, 0.01, 8, 3_000_000),
    (96, 1, 0.01, 8, 3_500_000),
    (96, 1, 0.007, 8, 3_500_000),
]


@dataclass(frozen=True)
class Way:
    """``expected`` is the loss with its interval, empty where nobody said."""

    folder: str
    name: str
    params: Params
    expected: str = ""


def planned(folder: Path, cost: float) -> list[Way]:
    storage = f"sqlite:///{folder / 'study.db'}"
    found = plan(optuna.load_study(study_name=None, storage=storage), cost)
    ways = [("the plan", found), *((other.way, other) for other in found.alternatives)]
    return [
        Way(
            folder.name,
            name,
            one.params,
            "{:.3f} [{:.3f}, {:.3f}]".format(one.output, *one.output_interval),
        )
        for name, one in ways
    ]


def by_hand() -> list[Way]:
    names = ("width", "depth", "learning_rate", "batch_size", "tokens")
    found = [dict(zip(names, values, strict=True)) | {"mix": MIX} for values in BY_HAND]
    return [Way("", "by hand", params) for params in found]


def trained(params: Params, shared: Path) -> tuple[float, float]:
    """Loss and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(params, Job(Path(folder), shared, settings=SETTINGS))
    return result.output, result.cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--cost", type=float, default=100.0, help="seconds")
    parser.add_argument("--by-hand", action="store_true")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parsed = parser.parse_args()
    ways = [way for folder in parsed.folders for way in planned(folder, parsed.cost)]
    ways += by_hand() if parsed.by_hand else []
    table = Table("", "", "configuration", "expected", "loss", "s")
    with tempfile.TemporaryDirectory() as shared, ProcessPoolExecutor(parsed.jobs) as pool:
        runs = [pool.submit(trained, way.params, Path(shared)) for way in ways]
        for way, run in zip(ways, runs, strict=True):
            loss, seconds = run.result()
            cells = (way.folder, way.name, in_a_line(way.params), way.expected)
            table.add_row(*cells, f"{loss:.3f}", f"{seconds:.0f}")
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
