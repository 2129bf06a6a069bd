"""The process of one logger: reads what to write on its standard input, and answers each line.

A process of its own, since none of these clients may hold up or end the sweep: they start threads,
catch signals, print, wait for servers, and import so much that the controller would stand still.

    in    the logger's config, then trials' runs and last the summary, each a line of JSON
    out   an empty line for what was written, or what went wrong; then the process ends
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from carbs.launchers.loggers.config import LogConfig
from carbs.launchers.loggers.runs import Summary, TrialRun


class Logger(Protocol):
    """A place to which runs are written. Any exception leaves it out."""

    def log_trial(self, trial: TrialRun) -> None:
        """Write what is new of a trial: of one that is running, its curve so far.

        What an earlier process has written of it may be there already.
        """

    def log_summary(self, summary: Summary) -> None:
        """Write the sweep's own run anew. Nothing comes after it: what runs, runs on unwatched."""


class Start(BaseModel):
    """The first line.

    Attributes:
        sweep_id: that no other sweep has.
        name: of the sweep.
        folder: of the sweep.
    """

    model_config = ConfigDict(frozen=True)

    config: LogConfig
    sweep_id: str
    name: str
    folder: Path


class Message(BaseModel):
    """Each other line: one of both."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    trial: TrialRun | None = None
    summary: Summary | None = None


def main() -> None:
    # What the clients print goes where their errors go.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        logger: Logger | None = None
        for line in sys.stdin:
            try:
                if logger is None:
                    logger = _logger(Start.model_validate_json(line))
                else:
                    _write(logger, Message.model_validate_json(line))
            except BaseException as error:
                said = str(error).strip().splitlines() or [type(error).__name__]
                print(said[0], file=answers, flush=True)
                raise
            print(file=answers, flush=True)


def _write(logger: Logger, message: Message) -> None:
    if message.trial is not None:
        logger.log_trial(message.trial)
    if message.summary is not None:
        logger.log_summary(message.summary)


def _logger(start: Start) -> Logger:
    config = start.config
    if config.wandb is not None:
        from carbs.launchers.loggers.to_wandb import WandbLogger

        return WandbLogger(config.wandb, start.sweep_id, start.name, start.folder)
    if config.mlflow is not None:
        from carbs.launchers.loggers.to_mlflow import MlflowLogger

        return MlflowLogger(config.mlflow, start.sweep_id, start.name)
    from carbs.launchers.loggers.to_tensorboard import TensorboardLogger

    assert config.tensorboard is not None
    return TensorboardLogger(config.tensorboard, start.name, start.folder)


if __name__ == "__main__":
    main()
