"""A sweep as it would go on with a sweep file, tried in a copy: the sweep itself is only read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from optuna.study import Study

from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.database import has_jobs
from carbs.launchers.controller.suggestions import Suggestions
from carbs.launchers.controller.sweep import Sweep, open_sweep_study
from carbs.launchers.errors import MissingStudyError
from carbs.records import Suggestion
from carbs.study import create_study


@dataclass(frozen=True)
class Planned:
    """A trial as it would be submitted.

    Attributes:
        script: for the scheduler; None where there is none.
    """

    suggestion: Suggestion
    tier: str | None
    script: str | None


def planned_trials(
    config: SweepConfig,
    folder: Path,
    python_path: tuple[str, ...],
    n: int,
    notify: Callable[[str], None] = lambda message: None,
) -> list[Planned]:
    """The next trials of a sweep, as they would be submitted; nothing is written or started.

    Args:
        config: what the sweep file says.
        folder: of the sweep; need not exist.
        n: how many, at the most.
        python_path, notify: as for :class:`Sweep`.

    Raises:
        FolderError: the sweep file does not go together with what the folder holds.
    """
    with _rehearsal(config, folder, python_path, notify) as sweep:
        sweep.ledger.refresh()
        sweep.nodes.refresh()
        jobs = sweep.jobs.moved_to(folder.resolve())
        planned = []
        for suggestion in Suggestions(config, sweep.ledger, sweep.sampler, notify).preview(n):
            tier = config.tier(suggestion.params, suggestion.predicted_cost)
            script = jobs.script(f"{int(suggestion.id):05d}", tier)
            planned.append(Planned(suggestion, tier, script))
        return planned


@contextmanager
def _rehearsal(
    config: SweepConfig,
    folder: Path,
    python_path: tuple[str, ...],
    notify: Callable[[str], None],
) -> Iterator[Sweep]:
    """The sweep in a folder, or one that would begin there, in a folder of its own for a while."""
    memory = optuna.storages.InMemoryStorage()
    begun = _begun(config, folder)
    if begun is None:
        study = create_study(config.name, memory, config.direction)
    else:
        optuna.copy_study(
            from_study_name=begun.study_name, from_storage=begun._storage, to_storage=memory
        )
        study = optuna.load_study(study_name=begun.study_name, storage=memory)
    with TemporaryDirectory() as aside:
        copy = Path(aside) / folder.name
        copy.mkdir()
        for file in () if begun is None else folder.iterdir():
            if file.suffix in (".json", ".id"):
                shutil.copy(file, copy)
        sweep = Sweep(
            config.model_copy(update={"storage": None, "storage_file": None}),
            copy,
            python_path,
            notify=notify,
            study=study,
        )
        sweep.follow_file()
        yield sweep


def _begun(config: SweepConfig, folder: Path) -> Study | None:
    try:
        return open_sweep_study(config, folder, may_begin=False)
    except MissingStudyError:
        if has_jobs(folder):
            raise
        return None
