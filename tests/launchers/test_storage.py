"""Where the study lies: URLs without passwords in files, and SQLite off network disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError

from carbs.launchers.controller import database as storage
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.database import database_url, network_warning, open_study
from carbs.launchers.controller.folder import read_config, write_config
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.errors import FolderError, SweepFileError
from carbs.study import create_study

SECRET = "se/cr@t"


def test_a_url_takes_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    monkeypatch.setenv("DB_URL", "sqlite:////a/b c.db")
    url = "postgresql+psycopg://you:${DB_PASSWORD}@host/carbs"
    # What a URL gives a meaning to is quoted.
    assert database_url(url) == "postgresql+psycopg://you:se%2Fcr%40t@host/carbs"
    assert database_url("${DB_URL}") == "sqlite:////a/b c.db"
    file = tmp_path / "url"
    file.write_text(url + "\n")
    assert database_url(None, str(file)) == database_url(url)
    assert database_url(None) is None
    with pytest.raises(SweepFileError, match="environment variable NO_SUCH_THING"):
        database_url("postgresql://${NO_SUCH_THING}@host/carbs")
    with pytest.raises(SweepFileError, match="storage_file"):
        database_url(None, str(tmp_path / "absent"))


@pytest.mark.parametrize("is_variable", [True, False])
def test_a_password_is_shown_and_written_nowhere(
    write_sweep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_variable: bool,
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("DB_PASSWORD", "hushhush")
    password = "${DB_PASSWORD}" if is_variable else "hushhush"
    file = write_sweep(storage=f"postgresql+psycopg://you:{password}@127.0.0.1:1/carbs")
    with pytest.raises(FolderError) as refusal:
        Sweep(load_sweep(file), tmp_path / "sweep")
    assert "127.0.0.1" in str(refusal.value)
    assert "hushhush" not in str(refusal.value)
    sweep = Sweep(load_sweep(file).model_copy(update={"storage": None}), tmp_path / "sweep")
    write_config(sweep.folder, load_sweep(file))
    for path in sweep.folder.rglob("*"):
        assert not path.is_file() or b"hushhush" not in path.read_bytes()
    # A variable is kept, so that `carbs status FOLDER` finds the study.
    assert read_config(sweep.folder).storage == (load_sweep(file).storage if is_variable else None)


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local xfs rw 0 0
sshfs#host: /mnt/ss\\040h fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "url", "kind"),
    [
        ("/home/you/sweep", None, "nfs4"),
        ("/home/local/sweep", None, None),
        ("/var/sweep", None, None),
        ("/homely/sweep", None, None),
        ("/mnt/ss h/sweep", None, "fuse.sshfs"),
        ("/var/sweep", "sqlite:////home/you/s.db", "nfs4"),
        ("/home/you/sweep", "sqlite:////var/s.db", None),
        ("/home/you/sweep", "postgresql://host/carbs", None),
    ],
)
def test_sqlite_on_a_network_file_system_is_warned_of(
    folder: str, url: str | None, kind: str | None
) -> None:
    warning = network_warning(Path(folder), url, MOUNTS)
    if kind is None:
        assert warning is None
    else:
        assert warning is not None
        assert f"({kind})" in warning
        assert "storage: postgresql" in warning


def test_a_database_that_was_there_is_waited_for_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that starts while its database does the same."""
    n_refusals = 1

    def refuse_at_first(*arguments: Any) -> Any:
        nonlocal n_refusals
        n_refusals -= 1
        if n_refusals >= 0:
            raise StorageInternalError("starting up")
        return create_study(*arguments)

    monkeypatch.setattr(storage, "create_study", refuse_at_first)
    assert open_study("s", tmp_path, None, "minimize", patience_s=60).study_name == "s"
    n_refusals = 1
    with pytest.raises(FolderError, match="cannot open the study"):
        open_study("s", tmp_path, None, "minimize")
