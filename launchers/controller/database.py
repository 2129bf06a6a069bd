"""The study's database: SQLite in the sweep's folder, or whatever a URL names.

A URL may hold ``${NAME}`` for an environment variable, or stand in a file of its own: so a password
is in no sweep file. What is read there is never printed or written anywhere.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from carbs.launchers.errors import FolderError, MissingStudyError, SweepFileError
from carbs.records import Direction
from carbs.storage import PatientStorage
from carbs.study import create_study

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|glusterfs|panfs|pvfs2|orangefs|afs|wekafs|9p|"
    r"fuse\.(sshfs|ceph\S*|glusterfs|gpfs|beegfs|lustre|juicefs|s3fs|gcsfuse|\w*nfs\w*)",
)


def database_url(storage: str | None, storage_file: str | None = None) -> str | None:
    """The URL that a sweep file names, with its variables filled in.

    Raises:
        SweepFileError: a variable is not set, or the file cannot be read.
    """
    if storage_file is not None:
        try:
            storage = Path(os.path.expandvars(storage_file)).expanduser().read_text().strip()
        except OSError as error:
            raise SweepFileError(
                f"cannot read storage_file {storage_file}: {error.strerror}"
            ) from None
    if storage is None:
        return None

    def variable(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise SweepFileError(f"storage names the environment variable {name}, which is not set")
        return os.environ[name] if is_whole else quote(os.environ[name], safe="")

    is_whole = re.fullmatch(r"\$\{\w+\}", storage) is not None
    return re.sub(r"\$\{(\w+)\}", variable, storage)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "its database, whose URL cannot be read"


def has_password(url: str) -> bool:
    """Whether a password stands in the URL itself, or that cannot be ruled out."""
    try:
        password = make_url(re.sub(r"\$\{(\w+)\}", "", url)).password
    except SQLAlchemyError:
        return True
    return bool(password)


def open_study(
    name: str,
    folder: Path,
    url: str | None,
    direction: Direction,
    patience_s: float = 0.0,
    *,
    may_begin: bool = True,
) -> Study:
    """Open a sweep's study, or make it.

    Args:
        name: of the study.
        folder: of the sweep, for the database where no URL is given.
        url: of the database, with its variables filled in.
        direction: whether a low or a high output is good.
        patience_s: how long a database that does not answer is asked again, where it is known to
            have been there.
        may_begin: whether to make it where it is not.

    Raises:
        MissingStudyError: it is not there, or has none of the trials whose jobs the folder holds.
        FolderError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = database_file(folder, url)
    if not may_begin and database is not None and not database.exists():
        raise _missing(name, folder, url)
    started = time.monotonic()
    while True:
        try:
            storage = _storage(folder, url)
            if may_begin:
                return create_study(name, storage, direction)
            study = optuna.load_study(study_name=name, storage=storage)
            if has_jobs(folder) and not storage.get_n_trials(study._study_id):
                raise _missing(name, folder, url)
            return study
        except KeyError:
            raise _missing(name, folder, url) from None
        except (SQLAlchemyError, StorageInternalError, ImportError) as error:
            if time.monotonic() - started >= patience_s or isinstance(error, ImportError):
                raise _cannot_open(name, folder, url, error) from None
            time.sleep(1)


def has_jobs(folder: Path) -> bool:
    """Whether a sweep's folder holds the jobs of any trial."""
    return any((folder / "jobs").glob("[0-9]*"))


def database_file(folder: Path, url: str | None) -> Path | None:
    """The file that an SQLite study lies in; None for another database."""
    if url is None:
        return folder / "study.db"
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        return None
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(str(parsed.database)) if is_file else None


def _missing(name: str, folder: Path, url: str | None) -> MissingStudyError:
    what = f"the study {name!r} is not in {_shown(folder, url)}"
    if not has_jobs(folder):
        return MissingStudyError(f"{what}: `carbs sweep` with its sweep file begins it")
    return MissingStudyError(
        f"{what}, or holds no trial, while {folder / 'jobs'} holds jobs of its trials. If it lies "
        f"on another machine's disk, go on there{_way_back(folder)}"
    )


def _shown(folder: Path, url: str | None) -> str:
    return without_password(url or f"sqlite:///{folder / 'study.db'}")


def _cannot_open(name: str, folder: Path, url: str | None, error: Exception) -> FolderError:
    cause = error.__cause__ or error
    reason = cause if isinstance(error, ImportError) else getattr(cause, "orig", None)
    return FolderError(
        f"cannot open the study {name!r} in {_shown(folder, url)} ({type(cause).__name__}: "
        f"{hide_password(str(reason), url)}): check the storage URL, or name another --folder"
        f"{_way_back(folder)}"
    )


def _way_back(folder: Path) -> str:
    """What to type where a sweep has begun, so that its jobs know what it found."""
    if not has_jobs(folder):
        return ""
    copies = [file for file in folder.glob("*-copy.db") if file.exists()]
    of = "".join(
        f"its copy of {datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M} and from "
        for file in copies[:1]
    )
    return (
        f".\nIf it is damaged or gone, make it anew from {of}the folders of its jobs:\n"
        f"  carbs recover {shlex.quote(str(folder))}"
    )


def hide_password(text: str, url: str | None) -> str:
    """What somebody else says of the database, as it may be shown."""
    with suppress(SQLAlchemyError):
        password = make_url(url or "").password
        if password:
            return text.replace(str(password), "***")
    return text


def _storage(folder: Path, url: str | None) -> RDBStorage:
    """The database; an SQLite file is made aside and put in place whole.

    Optuna makes its tables one by one, and a controller may be killed between two of them.
    """
    if url is not None:
        return PatientStorage(url)
    file = folder / "study.db"
    if not file.exists():
        with TemporaryDirectory(dir=folder) as aside:
            new = Path(aside) / file.name
            RDBStorage(f"sqlite:///{new}").engine.dispose()
            # Another controller may have been first.
            with suppress(FileExistsError):
                os.link(new, file)
    return PatientStorage(f"sqlite:///{file}")


def network_warning(folder: Path, url: str | None, mounts: str | None = None) -> str | None:
    """What to say where SQLite lies on a network file system; None where all is well.

    Args:
        folder: of the sweep.
        url: of the database; None for a file in the folder.
        mounts: in the form of ``/proc/mounts``; by default this machine's.
    """
    file = folder / "study.db"
    if url is not None:
        try:
            parsed = make_url(url)
        except SQLAlchemyError:
            return None
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            return None
        file = Path(parsed.database).resolve()
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text()
        except OSError:
            return None
    kind = _file_system(file, mounts)
    if kind is None or not _NETWORK.fullmatch(kind):
        return None
    return (
        f"{file} lies on a network file system ({kind}), where SQLite may lock up or lose data. "
        "Put it on a disk of this host, storage: sqlite:////local/disk/study.db, or in a "
        "PostgreSQL database, storage: postgresql+psycopg://user:${PASSWORD}@host/database"
    )


def _file_system(path: Path, mounts: str) -> str | None:
    """The type of the file system that a path lies on."""
    best, kind = "", None
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        place = fields[1].replace("\\040", " ")
        if Path(path).is_relative_to(place) and len(place) >= len(best):
            best, kind = place, fields[2]
    return kind
