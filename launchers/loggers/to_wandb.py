"""Runs of Weights & Biases: one for each trial, and one for the sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wandb

from carbs.launchers.loggers.config import WandbConfig
from carbs.launchers.loggers.runs import Point, Summary, TrialRun

_INIT_TIMEOUT_S = 30


class WandbLogger:
    """See :class:`carbs.launchers.loggers.process.Logger`.

    Args:
        config: of the sweep file.
        sweep_id: from which the runs' ids are made, so that a run is continued and not doubled.
        name: of the sweep.
        folder: for the client's files.

    Raises:
        RuntimeError: nobody is logged in.
    """

    def __init__(self, config: WandbConfig, sweep_id: str, name: str, folder: Path) -> None:
        self._config, self._id, self._name, self._folder = config, sweep_id, name, folder
        self._begun: dict[int, tuple[Any, list[Point]]] = {}
        self._mode: Any = config.mode or os.environ.get("WANDB_MODE", "online")
        # The client would ask at the terminal, which is the sweep's.
        if self._mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError(
                "nobody is logged in: run `wandb login`, set WANDB_API_KEY, or say mode: offline"
            )

    def log_trial(self, trial: TrialRun) -> None:
        run, written = self._begun.pop(trial.number, (None, []))
        if run is None:
            run = self._run(f"{trial.number:05d}", f"trial {trial.number}", "trial", trial.params)
            run.define_metric("curve/*", step_metric="progress")
            written = trial.curve[: run.step]  # by an earlier process
        # Where the trial began again, what it reports now comes after what it had reported.
        for progress, output, cost in trial.curve[trial.n_same(written) :]:
            run.log({"progress": progress, "curve/output": output, "curve/cost": cost})
        if not trial.has_ended:
            self._begun[trial.number] = run, trial.curve
            return
        run.summary.update({"state": trial.state, **trial.results})
        run.summary.update({f"metrics/{name}": value for name, value in trial.metrics.items()})
        if trial.reason is not None:
            run.summary["reason"] = trial.reason
        run.finish(exit_code=int(trial.state in ("failed", "lost")))

    def log_summary(self, summary: Summary) -> None:
        for begun, _ in self._begun.values():  # a run that the next controller goes on with
            begun.mark_preempting()
            begun.finish(exit_code=1)
        run = self._run("summary", f"{self._name}: summary", "sweep", summary.facts)
        names, rows = summary.table()
        run.log({"front": wandb.Table(columns=[*names], data=[*rows])})
        run.summary.update(summary.results)
        run.summary.update({f"trials/{state}": n for state, n in summary.counts.items()})
        if summary.report is not None:
            run.log({"report": wandb.Html(summary.report.read_text(), inject=False)})
        run.finish()

    def _run(self, key: str, name: str, job_type: str, config: dict[str, Any]) -> Any:
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            id=f"{self._id}-{key}",
            name=name,
            group=self._config.group or self._name,
            job_type=job_type,
            tags=[*self._config.tags, *([job_type] if job_type not in self._config.tags else [])],
            config=config,
            dir=self._folder,
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            # Output, machine and repository are the controller's, not the trial's.
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_INIT_TIMEOUT_S,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )
