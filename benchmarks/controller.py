"""What the control loop costs a trial, with many in flight: is it flat, however long the sweep?

Jobs are simulated: each reports as soon as it has been looked after for a while, through the files
that a real one writes. The study is real, in SQLite, and so are the folders. Suggestions are drawn
at random, since the optimizer's own time is another matter: it is measured apart, at some sizes.

    python benchmarks/controller.py [--trials 10000] [--in-flight 512] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carbs.launchers.cluster.executors import Handle, JobState, Submission
from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.controller.trials import Ended
from carbs.launchers.job.files import Finished, write_report
from carbs.launchers.job.protocol import Result
from carbs.optimizer import propose
from carbs.records import Direction, Observation, Suggestion
from carbs.search_space import Param, SearchSpace
from carbs.spaces import LogSpace
from carbs.study import CarbsSampler, Records

PARAMS = [
    Param(name, LogSpace(scale=0.5), search_center=1.0)
    for name in ("learning_rate", "width", "tokens", "batch_size")
]


class SimulatedExecutor:
    """Ends each job after a number of looks at it, of which some come before others."""

    poll_s = 0.0
    grace_s = 0.0

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._looks_left: dict[Path, int] = {}
        self.seconds = 0.0  # in here, and so not the controller's

    def submit(self, submission: Submission) -> list[str]:
        for folder in submission.folders:
            self._looks_left[folder] = int(self._rng.integers(1, 40))
        return [folder.name for folder in submission.folders]

    def find(self, submission: Submission) -> list[str]:
        return []

    def states(self, handles: Sequence[Handle]) -> list[JobState]:
        started = time.perf_counter()
        for handle in handles:
            self._looks_left[handle.folder] -= 1
            if self._looks_left[handle.folder] == 0:
                cost = float(self._rng.lognormal())
                write_report(handle.folder, Finished(result=Result(output=1 / cost, cost=cost)))
                del self._looks_left[handle.folder]
            elif self._looks_left[handle.folder] < 0:
                raise AssertionError(f"{handle.folder} was looked at after its end")
        self.seconds += time.perf_counter() - started
        return [JobState(True, "RUNNING") for _ in handles]

    def cancel(self, handles: Sequence[Handle]) -> None:
        pass

    def script(self, submission: Submission) -> str | None:
        return None


class RandomSampler(CarbsSampler):
    """Suggestions that cost no time."""

    def suggest(self, known: Records, number: int, direction: Direction) -> Suggestion:
        rng = np.random.default_rng(number)
        params = {param.name: float(rng.lognormal()) for param in PARAMS}
        return Suggestion(id=str(number), params=params, predicted_cost=1.0)


def run(n_trials: int, n_in_flight: int, folder: Path) -> list[tuple[float, float]]:
    """Processor's and clock's seconds at the end of each trial, less those of the simulation."""
    config = SweepConfig.model_validate(
        {
            "name": "controller",
            "function": "nowhere:train",
            "parameters": [param.model_dump() for param in PARAMS],
            "max_trials": n_trials,
            "max_in_flight": n_in_flight,
        }
    )
    executor = SimulatedExecutor()
    sweep = Sweep(config, folder, executor=executor)
    sweep.sampler = RandomSampler(PARAMS)
    moments: list[tuple[float, float]] = []

    def on_end(ended: Ended) -> None:
        now = time.process_time(), time.perf_counter()
        moments.append((now[0] - executor.seconds, now[1] - executor.seconds))

    with Controller(sweep) as controller:
        while controller.tick(on_end=on_end) is not None:
            pass
    assert len(moments) == n_trials
    return moments


def optimizer_seconds(n: int) -> float:
    """Processor's seconds of one suggestion after so many observations."""
    rng = np.random.default_rng(0)
    observations = []
    for i in range(n):
        params: dict[str, Any] = {p.name: float(rng.lognormal(sigma=0.5)) for p in PARAMS}
        cost = params["width"] * params["tokens"]
        output = 1 + cost**-0.3 + np.log(params["learning_rate"]) ** 2
        observations.append(Observation(params=params, output=output, cost=cost, id=str(i)))
    started = time.process_time()
    propose(SearchSpace(PARAMS), observations, [], [], [str(n)], seed=0)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="a new one; by default a temporary one")
    parser.add_argument("--observations", type=int, nargs="*", default=[100, 1000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        moments = np.array(
            run(arguments.trials, arguments.in_flight, arguments.folder or Path(aside) / "sweep")
        )
    n = min(1000, arguments.trials // 3)
    # The first trials end only once all slots are filled: that counts for them.
    pieces = {
        f"first {n}": moments[n] - moments[0],
        f"last {n}": moments[-1] - moments[-1 - n],
        "all": (moments[-1] - moments[0]) * n / (len(moments) - 1),
    }
    print(f"{arguments.trials} trials, {arguments.in_flight} in flight, SQLite")
    for name, (cpu_s, clock_s) in pieces.items():
        print(
            f"{name:>12}: {1000 * cpu_s / n:7.2f} ms of the processor a trial, "
            f"{1000 * clock_s / n:7.2f} ms on the clock"
        )
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak_mib:.0f} MiB")
    for n_observations in arguments.observations:
        seconds = optimizer_seconds(n_observations)
        print(f"the optimizer, at {n_observations} observations: {seconds:.2f} s a suggestion")


if __name__ == "__main__":
    main()
