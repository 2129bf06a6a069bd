"""The key ``log:`` of a sweep file: where trials are written to, besides the study.

log:
  - wandb: {project: my-project}
  - mlflow: {tracking_uri: "sqlite:///mlflow.db"}
  - tensorboard: {folder: tensorboard}
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}


class WandbConfig(BaseModel):
    """A project of Weights & Biases.

    Attributes:
        project: its name.
        entity: whose project; by default yours.
        group: of the runs; by default the sweep's name.
        tags: for every run.
        mode: ``online``, or ``offline`` for files below the sweep's folder, which ``wandb sync``
            uploads; by default what ``WANDB_MODE`` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field(min_length=1)
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None


class MlflowConfig(BaseModel):
    """An experiment of MLflow.

    Attributes:
        tracking_uri: of the server or the store; by default what ``MLFLOW_TRACKING_URI`` says.
        experiment: its name; by default the sweep's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracking_uri: str | None = None
    experiment: str | None = None

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password:
            raise ValueError(
                "a password does not belong into a file that others read: say it in the "
                "environment, in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class TensorboardConfig(BaseModel):
    """A folder of event files, for ``tensorboard --logdir``.

    Attributes:
        folder: the sweep's name is a folder below it; by default ``tensorboard`` in the sweep's
            own. A relative one counts from the working directory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str | None = None


class LogConfig(BaseModel):
    """One entry of ``log``: exactly one of these.

    Attributes:
        wandb: a project of Weights & Biases.
        mlflow: an experiment of MLflow.
        tensorboard: a folder of event files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    tensorboard: TensorboardConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, entry: Any) -> Any:
        if isinstance(entry, str):
            return {entry: {}}
        if isinstance(entry, dict) and list(entry.values()) == [None]:
            return {key: {} for key in entry}  # "tensorboard:" with nothing behind it
        return entry

    @model_validator(mode="after")
    def _one_place(self) -> LogConfig:
        if len([name for name in _PACKAGES if getattr(self, name) is not None]) != 1:
            raise ValueError(f"each entry of log is one of {', '.join(_PACKAGES)}")
        return self

    @property
    def name(self) -> str:
        """``wandb``, ``mlflow`` or ``tensorboard``."""
        return next(name for name in _PACKAGES if getattr(self, name) is not None)

    @property
    def key(self) -> str:
        """Which place this is: another project or folder has another key."""
        text = self.model_dump_json(exclude_none=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def missing(self) -> str | None:
        """What to install, where its package is not there; it is not imported."""
        if find_spec(_PACKAGES[self.name]) is not None:
            return None
        return (
            f"log: the package {_PACKAGES[self.name]} is not installed: "
            f"pip install 'carbs-search[{self.name}]'"
        )
