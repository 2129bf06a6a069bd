"""Event files of TensorBoard: a folder for each trial, and one for the sweep."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from carbs.launchers.loggers.config import TensorboardConfig
from carbs.launchers.loggers.runs import STEPS, Point, Summary, TrialRun


class TensorboardLogger:
    """See :class:`carbs.launchers.loggers.process.Logger`.

    Args:
        config: of the sweep file.
        name: of the sweep, and of the folder that holds its runs.
        folder: of the sweep.
    """

    def __init__(self, config: TensorboardConfig, name: str, folder: Path) -> None:
        root = folder / "tensorboard" if config.folder is None else Path(config.folder).expanduser()
        self._folder = root / name
        self._begun: dict[int, tuple[SummaryWriter | None, list[Point]]] = {}

    def log_trial(self, trial: TrialRun) -> None:
        writer, written = self._begun.pop(trial.number, (None, []))
        if writer is not None and not trial.goes_on(written):
            writer.close()
            writer = None
        if writer is None:
            writer, written = self._writer(f"trial-{trial.number:05d}"), []
        for progress, output, cost in trial.curve[len(written) :]:
            step = round(STEPS * progress)
            writer.add_scalar("curve/output", output, step)
            writer.add_scalar("curve/cost", cost, step)
        if not trial.has_ended:
            writer.flush()
            self._begun[trial.number] = writer, trial.curve
            return
        with writer:
            # The page of hyperparameters: over all trials, sortable, in parallel coordinates.
            writer.add_hparams(trial.params, trial.results, run_name=".", global_step=STEPS)
            for name, value in trial.metrics.items():
                if isinstance(value, str):
                    writer.add_text(f"metrics/{name}", value, STEPS)
                else:
                    writer.add_scalar(f"metrics/{name}", value, STEPS)
            said = trial.state + (f": {trial.reason}" if trial.reason is not None else "")
            writer.add_text("state", said, STEPS)

    def log_summary(self, summary: Summary) -> None:
        names, rows = summary.table()
        with self._writer("summary") as writer:
            for name, value in summary.results.items():
                writer.add_scalar(name, value, sum(summary.counts.values()))
            for state, n in summary.counts.items():
                writer.add_scalar(f"trials/{state}", n, sum(summary.counts.values()))
            lines = [names, ["---"] * len(names), *rows]
            table = "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)
            writer.add_text("front", table)

    def _writer(self, run: str) -> SummaryWriter:
        folder = self._folder / run
        for half in folder.glob("events.out.tfevents.*"):  # else both would be drawn
            half.unlink()
        return SummaryWriter(str(folder))


def _cell(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value).replace("|", "\\|")
