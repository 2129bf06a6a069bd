"""What a sweep learns from others: read once, when it begins, and then kept in its folder."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from pydantic import TypeAdapter
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from carbs.earlier import EarlierSweep
from carbs.launchers.controller.config import SweepConfig, WarmStartConfig
from carbs.launchers.controller.database import database_url, without_password
from carbs.launchers.controller.folder import CONFIG_FILE
from carbs.launchers.errors import FolderError
from carbs.search_space import SearchSpace
from carbs.study import earlier_sweep

_EARLIER = "earlier.json"
_SWEEPS = TypeAdapter(list[EarlierSweep])


def keep_earlier(config: SweepConfig, space: SearchSpace, folder: Path) -> None:
    """Copy what earlier sweeps recorded, so that later controllers need only this folder.

    Raises:
        FolderError: one of them cannot be read, or not be learnt from.
    """
    earlier = [_read_earlier(source) for source in config.warm_start]
    try:
        for sweep in earlier:
            sweep.seen_from(space, config.direction)
    except ValueError as error:
        raise FolderError(f"warm_start of {config.name!r}: {error}") from None
    if earlier:
        file = folder / _EARLIER
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(_SWEEPS.dump_json(earlier))
        temporary.replace(file)


def kept_earlier(config: SweepConfig, folder: Path) -> list[EarlierSweep]:
    """What :func:`keep_earlier` has kept.

    Raises:
        FolderError: the sweep was begun without a warm start, which cannot be added later.
    """
    file = folder / _EARLIER
    if file.exists():
        return _SWEEPS.validate_json(file.read_bytes())
    if config.warm_start:
        raise FolderError(
            f"study {config.name!r} in {folder} was begun without warm_start: name another "
            "--folder, or take warm_start back"
        )
    return []


def _read_earlier(source: WarmStartConfig) -> EarlierSweep:
    """The records that an entry of ``warm_start`` names.

    Raises:
        FolderError: there are none, or they cannot be read.
    """
    name, url = source.study, database_url(source.storage)
    if source.folder is not None:
        folder = Path(source.folder).expanduser().resolve()
        try:
            config = SweepConfig.model_validate_json((folder / CONFIG_FILE).read_text())
        except (OSError, ValueError) as error:
            raise FolderError(f"warm_start: {folder} holds no sweep: {error}") from None
        name = config.name
        url = database_url(config.storage) or f"sqlite:///{folder / 'study.db'}"
    assert url is not None
    where = f"warm_start: study {name!r} in {without_password(url)}"
    try:
        database = make_url(url)
        if database.get_backend_name() == "sqlite" and not Path(database.database or "").is_file():
            raise FolderError(f"{where}: there is no such file")  # Optuna would make it
        study = optuna.load_study(study_name=name, storage=url)
        return earlier_sweep(study, source.defaults)
    except KeyError:
        raise FolderError(f"{where}: there is no study of that name") from None
    except (SQLAlchemyError, StorageInternalError, ValueError, ImportError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "orig", None) or (cause if isinstance(cause, ValueError) else None)
        raise FolderError(f"{where} cannot be read ({type(cause).__name__}: {reason})") from None
