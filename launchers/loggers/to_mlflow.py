"""Runs of MLflow: one for the sweep, and below it one for each trial."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from carbs.launchers.loggers.config import MlflowConfig
from carbs.launchers.loggers.runs import STEPS, Point, Summary, TrialRun

# The terminal is the sweep's.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
logging.getLogger("mlflow").setLevel(logging.WARNING)

_LONGEST_TAG = 5000
_BATCH = 900  # of metrics in one request, which takes a thousand


class MlflowLogger:
    """See :class:`carbs.launchers.loggers.process.Logger`.

    Args:
        config: of the sweep file.
        sweep_id: by which the runs are found again, in their tag ``carbs.run``.
        name: of the sweep.
    """

    def __init__(self, config: MlflowConfig, sweep_id: str, name: str) -> None:
        self._client, self._id = MlflowClient(tracking_uri=config.tracking_uri), sweep_id
        experiment = config.experiment or name
        found = self._client.get_experiment_by_name(experiment)
        self._experiment: str = (
            found.experiment_id if found else self._client.create_experiment(experiment)
        )
        self._parent = self._find("summary") or self._create("summary", name, None)
        self._begun: dict[int, tuple[Run | None, list[Point]]] = {}

    def log_trial(self, trial: TrialRun) -> None:
        run, written = self._begun.pop(trial.number, (None, []))
        if run is None or not trial.goes_on(written):
            run, written = self._begin(trial), []
        now = _milliseconds(trial.ended)
        metrics = []
        for progress, output, cost in trial.curve[len(written) :]:
            step = round(STEPS * progress)
            metrics.append(Metric("curve.output", output, now, step))
            metrics.append(Metric("curve.cost", cost, now, step))
        if not trial.has_ended:
            self._write(run, metrics, {}, {})
            self._begun[trial.number] = run, trial.curve
            return
        numbers = trial.results | {
            f"metrics.{name}": float(value)
            for name, value in trial.metrics.items()
            if not isinstance(value, str)
        }
        words = {f"metrics.{k}": v for k, v in trial.metrics.items() if isinstance(v, str)}
        metrics += [Metric(_name(name), value, now, STEPS) for name, value in numbers.items()]
        self._write(
            run, metrics, {}, {"carbs.state": trial.state, "carbs.reason": trial.reason, **words}
        )
        status = "FAILED" if trial.state in ("failed", "lost") else "FINISHED"
        self._client.set_terminated(run.info.run_id, status, end_time=now)

    def _begin(self, trial: TrialRun) -> Run:
        key = f"{trial.number:05d}"
        half = self._find(key)
        if half is not None:  # curves would be drawn twice
            self._client.delete_run(half.info.run_id)
        run = self._create(key, f"trial {trial.number}", trial.started, self._parent.info.run_id)
        self._write(run, [], trial.params, {"carbs.state": trial.state})
        return run

    def log_summary(self, summary: Summary) -> None:
        names, rows = summary.table()
        text = io.StringIO()
        csv.writer(text).writerows([names, *rows])
        run_id = self._parent.info.run_id
        self._client.log_text(run_id, text.getvalue(), "front.csv")
        self._client.log_dict(run_id, summary.facts, "sweep.json")
        counts = {f"trials.{state}": float(n) for state, n in summary.counts.items()}
        now, step = _milliseconds(None), sum(summary.counts.values())
        self._write(
            self._parent,
            [Metric(_name(k), v, now, step) for k, v in {**summary.results, **counts}.items()],
            {},
            {},
        )
        if summary.report is not None:
            self._client.log_artifact(run_id, str(summary.report))
        self._client.set_terminated(run_id, "FINISHED")

    def _find(self, key: str) -> Run | None:
        query = f"tags.`carbs.run` = '{self._id}-{key}'"
        found = self._client.search_runs([self._experiment], query, max_results=1)
        return found[0] if found else None

    def _create(self, key: str, name: str, started: float | None, parent: str | None = None) -> Run:
        tags = {"carbs.run": f"{self._id}-{key}", "carbs.sweep": self._id}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        return self._client.create_run(
            self._experiment, start_time=_milliseconds(started), tags=tags, run_name=name
        )

    def _write(
        self,
        run: Run,
        metrics: list[Metric],
        params: Mapping[str, Any],
        tags: Mapping[str, str | None],
    ) -> None:
        self._client.log_batch(
            run.info.run_id,
            params=[Param(_name(name), str(value)) for name, value in params.items()],
            tags=[
                RunTag(_name(name), value[:_LONGEST_TAG])
                for name, value in tags.items()
                if value is not None
            ],
        )
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run.info.run_id, metrics=metrics[start : start + _BATCH])


def _name(name: str) -> str:
    """In the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _milliseconds(moment: float | None) -> int:
    return round(1000 * (time.time() if moment is None else moment))
