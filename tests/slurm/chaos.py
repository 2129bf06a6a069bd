"""A sweep of 60 reference jobs on a Slurm and a PostgreSQL to which everything happens.

    eval "$(tests/slurm/start.sh)"
    python tests/slurm/chaos.py [--folder FOLDER] [--trials 60]

It needs root, for a small disk that fills up, and takes some ten minutes on two cores. Each mishap
comes at least twice; the table at the end says how often, and whether the sweep has come through:
the exit code is 0 only then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from carbs.storage import PatientStorage

ROOT = Path(__file__).parents[2]
FULL_FOR_S = 20
NAN_SEEDS, MEMORY_SEEDS = {7, 23}, {11, 31}

# The reference job, which notes when it starts and finishes, and goes wrong at some seeds.
TRAINING = """
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from carbs.launchers.lm.train import train as train_model

def note(job, what):
    with open(job.settings["log"], "a") as log:
        log.write(f"{what} {job.seed} {job.folder}\\n")

def train(params, job):
    note(job, "start")
    settings = {"checkpoint_every_s": 0.3}
    if job.seed in MEMORY_SEEDS:
        hoard = []
        while True:
            hoard.append(np.ones(20_000_000))
    result = train_model(params, replace(job, settings=settings))
    note(job, "finish")
    if job.seed in NAN_SEEDS:
        return {"output": float("nan"), "cost": result.cost}
    return result
"""

SWEEP = {
    "name": f"chaos-{os.getpid()}",
    "function": "chaos_training:train",
    "parameters": {
        "width": {
            "space": "log",
            "min": 16,
            "max": 48,
            "is_integer": True,
            "rounding_factor": 16,
            "search_center": 32,
        },
        "learning_rate": {"space": "log", "scale": 0.3, "search_center": 0.01},
        "tokens": {
            "space": "log",
            "min": 400_000,
            "max": 1_000_000,
            "is_integer": True,
            "search_center": 600_000,
        },
    },
    "executor": "slurm",
    "max_in_flight": 8,
    "machine_retries": 10,
    # One machine plays four nodes here: how fast each is says nothing.
    "max_slowdown": None,
    "exclude_node_for_s": 30,
    "poll_s": 1,
    "grace_s": 5,
}


class Chaos:
    """The sweep, and what is done to it."""

    def __init__(self, folder: Path, n_trials: int) -> None:
        self.folder = folder / "sweep"
        self.log = folder / "log.txt"
        self.log.touch()
        self.file = folder / "sweep.yaml"
        self.n_trials = n_trials
        source = TRAINING.replace("NAN_SEEDS", str(NAN_SEEDS))
        source = source.replace("MEMORY_SEEDS", str(MEMORY_SEEDS))
        (folder / "chaos_training.py").write_text(source)
        setup = [f"export PYTHONPATH={ROOT} OMP_NUM_THREADS=1"]
        options = {"cpus_per_task": 1, "mem_gb": 0.9, "timeout_min": 10, "setup": setup}
        self.url = run("tests/postgres/start.sh").stdout.split()[-1]
        content = {
            **SWEEP,
            "max_trials": n_trials,
            "storage": self.url,
            "settings": {"log": str(self.log)},
            "executor_options": options,
        }
        self.file.write_text(yaml.safe_dump(content))
        self.output = (folder / "controller.txt").open("a")
        self.controller: subprocess.Popen[bytes] | None = None
        self.done: Counter[str] = Counter()
        self.mounts: dict[Path, float] = {}
        self.random = random.Random(0)
        self._storage = PatientStorage(self.url)

    def start_controller(self) -> None:
        program = "from carbs.launchers.cli.app import main; main()"
        command = [sys.executable, "-c", program, "sweep", str(self.file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.controller = subprocess.Popen(
            [*command, "--folder", str(self.folder)],
            stdout=self.output,
            stderr=self.output,
            env=environment,
        )

    def trials(self) -> list[FrozenTrial]:
        try:
            name = str(SWEEP["name"])
            return optuna.load_study(study_name=name, storage=self._storage).get_trials(False)
        except KeyError:  # the controller has not come so far
            return []

    def training(self) -> list[tuple[int, str, Path]]:
        """Trials that train now: number, job id, and checkpoint folder with something in it."""
        found = []
        for trial in self.trials():
            if trial.state != TrialState.RUNNING or trial.number in NAN_SEEDS | MEMORY_SEEDS:
                continue
            checkpoints = self.folder / "checkpoints" / f"{trial.number:05d}"
            job_id = trial.user_attrs.get("job", {}).get("id")
            if job_id and list(checkpoints.glob("*.pt")) and checkpoints not in self.mounts:
                found.append((trial.number, str(job_id), checkpoints))
        self.random.shuffle(found)
        return found

    def a_job(self) -> tuple[int, str, Path]:
        """One that trains and has a checkpoint, once there is one."""
        while True:
            if found := self.training():
                return found[0]
            self.watch(0.2)

    def watch(self, seconds: float) -> None:
        """Wait; a controller that ended of itself is an end of everything."""
        time.sleep(seconds)
        assert self.controller is not None
        if self.controller.poll() is not None:
            raise EOFError

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.kill()
        self.controller.wait()
        time.sleep(3)
        self.start_controller()

    def lose_node(self) -> None:
        _, job_id, _ = self.a_job()
        node = run("squeue", "-h", "-j", job_id, "-o", "%N").stdout.strip()
        if not node:
            return self.lose_node()
        run("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
        pid = slurm_root() / "run" / f"slurmd-{node}.pid"
        run("kill", "-9", pid.read_text().strip())
        self.watch(8)
        run("slurmd", "-N", node)
        run("scontrol", "update", f"nodename={node}", "state=resume")
        return None

    def cancel_job(self) -> None:
        self.strike("scancel")

    def requeue_job(self) -> None:
        self.strike("scontrol", "requeue")

    def strike(self, *command: str) -> None:
        """Do something to a job that trains; another one where it was just ending."""
        while True:
            number, job_id, _ = self.a_job()
            answer = run(*command, job_id)
            if answer.returncode == 0 and not self.has_reported(number):
                return
            self.watch(0.2)

    def has_reported(self, number: int) -> bool:
        return any((self.folder / "jobs").glob(f"{number:05d}-*/report.json"))

    def fill_disk(self) -> None:
        _, _, checkpoints = self.a_job()
        run("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(checkpoints))
        self.mounts[checkpoints] = time.monotonic()

    def corrupt_checkpoint(self) -> None:
        while True:
            number, job_id, checkpoints = self.a_job()
            answer = run("scontrol", "requeue", job_id)
            with contextlib.suppress(FileNotFoundError, ValueError):
                newest = max(checkpoints.glob("*.pt"))
                os.truncate(newest, newest.stat().st_size // 2)
                if answer.returncode == 0 and not self.has_reported(number):
                    return

    def restart_postgres(self) -> None:
        run("tests/postgres/stop.sh", "restart")

    def stop_slurmdbd(self) -> None:
        pid = slurm_root() / "run" / "slurmdbd.pid"
        run("kill", pid.read_text().strip())
        try:
            self.watch(60)
        finally:
            run("slurmdbd")

    def clean_up_disks(self, everywhere: bool = False) -> None:
        """Someone makes room on the full disks, after a while."""
        for folder, since in list(self.mounts.items()):
            if everywhere or time.monotonic() - since > FULL_FOR_S:
                run("umount", "--lazy", str(folder))
                del self.mounts[folder]

    def go(self) -> None:
        """All mishaps, in turns, until the sweep has ended."""
        mishaps: list[tuple[str, Callable[[], None]]] = [
            ("controller killed", self.kill_controller),
            ("job cancelled (scancel)", self.cancel_job),
            ("checkpoint folder's disk full", self.fill_disk),
            ("job requeued", self.requeue_job),
            ("checkpoint corrupted", self.corrupt_checkpoint),
            ("node down, its daemon killed", self.lose_node),
            ("PostgreSQL restarted", self.restart_postgres),
            ("slurmdbd stopped for a minute", self.stop_slurmdbd),
        ]
        started = time.monotonic()
        self.start_controller()
        with contextlib.suppress(EOFError):
            self.a_job()
            for _ in range(2):
                for name, mishap in mishaps:
                    mishap()
                    self.done[name] += 1
                    say(f"{time.monotonic() - started:5.0f} s  {name}")
                    self.clean_up_disks()
                    self.watch(2)
            while True:
                self.clean_up_disks()
                self.watch(2)
        self.clean_up_disks(everywhere=True)
        assert self.controller is not None
        say(
            f"{time.monotonic() - started:5.0f} s  the sweep has ended, "
            f"exit code {self.controller.returncode}"
        )
        for name in (name for name, _ in mishaps):
            self.done.setdefault(name, 0)

    def verdicts(self) -> list[tuple[str, str, bool]]:
        """What must hold: the name, what was seen, and whether it holds."""
        trials = self.trials()
        kept = [trial for trial in trials if "forgotten" not in trial.user_attrs]
        finished = [trial for trial in kept if trial.state == TrialState.COMPLETE]
        failed = {trial.number: trial for trial in kept if trial.state == TrialState.FAIL}
        expected = {n for n in NAN_SEEDS | MEMORY_SEEDS if n < self.n_trials}
        completions = Counter(
            int(line.split()[1])
            for line in self.log.read_text().splitlines()
            if line.startswith("finish")
        )
        starts = Counter(
            int(line.split()[1])
            for line in self.log.read_text().splitlines()
            if line.startswith("start")
        )
        twice = {number for number, n in completions.items() if n > 1}
        reasons = {n: t.user_attrs.get("failure", {}).get("reason") for n, t in failed.items()}
        past = [p["reason"] for t in trials for p in t.user_attrs.get("attempts", [])]
        prefix = (self.folder / "sweep.id").read_text()
        queue = run("squeue", "-h", "-r", "-o", "%j").stdout.split()
        left = [name for name in queue if name.startswith(prefix)]
        unfinished = [trial.number for trial in trials if not trial.state.is_finished()]
        n_nan = sum("nan" in str(reasons.get(n)) for n in NAN_SEEDS)
        n_memory = sum("memory" in str(reasons.get(n)) for n in MEMORY_SEEDS)
        self.done["NaN returned"] = n_nan
        self.done["memory exceeded"] = n_memory
        n_results = self.n_trials - len(expected)
        return [
            (
                "the right number of results",
                f"{len(finished)} of {n_results}",
                len(finished) == n_results,
            ),
            (
                "no trial lost",
                f"{len(trials) - len(kept)} lost, {len(unfinished)} open",
                len(kept) == len(trials) == self.n_trials and not unfinished,
            ),
            ("none run twice to completion", f"{sorted(twice) or 'none'}", not twice),
            (
                "no bad-machine event reached the optimizer",
                f"failures: {sorted(failed)}",
                set(failed) == expected,
            ),
            (
                "every failure has its reason",
                "; ".join(sorted({str(r) for r in reasons.values()})),
                all(reasons.values()) and all(past),
            ),
            ("no job left in the queue", f"{len(left)}", not left),
            (
                "attempts and restarts beyond the first",
                f"{sum(starts.values()) - len(starts)}",
                True,
            ),
            ("why attempts were repeated", str(dict(Counter(past))), True),
        ]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def slurm_root() -> Path:
    return Path(os.environ["SLURM_CONF"]).parents[1]


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="a new one; by default a temporary one")
    parser.add_argument("--trials", type=int, default=60)
    arguments = parser.parse_args()
    if os.getuid() != 0 or "SLURM_CONF" not in os.environ:
        sys.exit('this needs root, and a Slurm: eval "$(tests/slurm/start.sh)"')
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="carbs-chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    say(f"in {folder}")
    chaos = Chaos(folder, arguments.trials)
    try:
        chaos.go()
        verdicts = chaos.verdicts()
    finally:
        chaos.clean_up_disks(everywhere=True)
        if chaos.controller is not None and chaos.controller.poll() is None:
            chaos.controller.kill()
    mishaps = Table("mishap", "times")
    for name, times in chaos.done.items():
        mishaps.add_row(name, str(times))
    table = Table("afterwards", "seen", "holds")
    for name, seen, holds in verdicts:
        table.add_row(name, seen, "yes" if holds else "NO")
    console = Console(width=120)
    console.print(mishaps, table)
    is_good = all(holds for *_, holds in verdicts) and min(chaos.done.values()) >= 2
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
