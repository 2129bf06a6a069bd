"""``carbs doctor``: what of a machine will not work for a sweep, before the sweep finds out."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import BaseModel, ConfigDict
from rich.text import Text

from carbs.launchers.cli.terminal import PLAIN, JsonOption, console, print_json, working
from carbs.launchers.errors import LauncherError

if TYPE_CHECKING:
    from carbs.launchers.controller.config import SweepConfig

_LITTLE_SPACE, _NO_SPACE = 5 * 2**30, 200 * 2**20
_LITTLE_INODES = 10_000
_CLOCK_WARNING_S = 2.0
_SLOW_DATABASE_S = 1.0
_STYLES = {"ok": "green", "warning": "yellow", "will not work": "red"}


class Finding(BaseModel):
    """One line of ``carbs doctor``.

    Attributes:
        what: was looked at.
        found: in a few words.
        remedy: what to do about it; empty where all is well.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    state: Literal["ok", "warning", "will not work"]
    found: str
    remedy: str = ""


def doctor(
    where: Annotated[
        Path | None,
        typer.Argument(help="A sweep file, or a sweep's folder; without it, this folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what will not work here, and say how to mend it.

    Exit code 1: something will not work.
    """
    findings = []
    for what, look in _looks(where):
        with working(f"looking at {what}"):
            found = list(look())
        findings += found
        for finding in [] if as_json else found:
            console.print(
                Text.assemble((f"{finding.state:13}", _STYLES[finding.state]), " ", _line(finding)),
                soft_wrap=True,
            )
            if finding.remedy:
                console.print(f"{'':13} {finding.remedy}", **PLAIN)
    if as_json:
        print_json(findings)
    if any(finding.state == "will not work" for finding in findings):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    return f"{finding.what}: {finding.found}"


def _looks(where: Path | None) -> Iterator[tuple[str, Callable[[], Iterator[Finding]]]]:
    """What is looked at, in its order."""
    config, folder = _sweep(where)
    yield "Python", look_at_python
    yield "torch", lambda: look_at_torch(config)
    yield "Slurm", lambda: look_at_slurm(config)
    yield "the database", lambda: look_at_database(config, folder)
    yield "the disk", lambda: look_at_disk(folder)
    yield "the clock", lambda: look_at_clock(folder)


def _sweep(where: Path | None) -> tuple[SweepConfig | None, Path]:
    """What the sweep asks for, if one is named, and where it lies or will lie."""
    from carbs.launchers.cli.status import find_sweep
    from carbs.launchers.controller.config import load_sweep
    from carbs.launchers.controller.folder import read_config

    if where is None:
        return None, Path.cwd()
    if where.is_file():
        config = load_sweep(where)
        return config, Path("sweeps") / config.name
    folder = find_sweep(where)
    return read_config(folder), folder


def look_at_python() -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.executable}, on {platform.node()}"
    yield Finding(what="Python", state="ok", found=found)


def look_at_torch(config: SweepConfig | None) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            what="torch",
            state="will not work",
            found=f"cannot be imported: {error}",
            remedy="install it again, see https://pytorch.org/get-started/locally",
        )
        return
    yield Finding(what="torch", state="ok", found=str(torch.__version__))
    asked = config.executor_options.get("gpus_per_node", 0) if config else 0
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(number)
            try:
                torch.ones(8, device=f"cuda:{number}").sum().item()
                yield Finding(what=f"GPU {number}", state="ok", found=name)
            except RuntimeError as error:
                yield Finding(
                    what=f"GPU {number}",
                    state="will not work",
                    found=f"{name}: {str(error).splitlines()[0]}",
                    remedy="use a build of torch for this GPU and driver, or another node",
                )
    elif torch.version.cuda is None and (asked or shutil.which("nvidia-smi")):
        why = "the sweep asks for GPUs" if asked else "there is an NVIDIA driver"
        yield Finding(
            what="CUDA",
            state="warning",
            found=f"{why}, and this torch is built for the CPU alone",
            remedy="install a build with CUDA, see https://pytorch.org/get-started/locally",
        )
    elif shutil.which("nvidia-smi"):
        yield Finding(
            what="CUDA",
            state="warning",
            found="there is an NVIDIA driver, and torch sees no GPU",
            remedy="look at `nvidia-smi`, and at CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding(what="CUDA", state="ok", found="no GPU here")


def look_at_slurm(config: SweepConfig | None) -> Iterator[Finding]:
    from carbs.launchers.cluster.slurm import COMMANDS, Slurm

    is_needed = config is not None and config.executor == "slurm"
    bad: Literal["warning", "will not work"] = "will not work" if is_needed else "warning"
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if len(missing) == len(COMMANDS) and not is_needed:
        yield Finding(what="Slurm", state="ok", found="none here; sweeps run as local processes")
        return
    if missing:
        yield Finding(
            what="Slurm",
            state=bad,
            found=f"{', '.join(missing)} cannot be found",
            remedy="run carbs on a login node of the cluster, or mend PATH",
        )
        return
    slurm = Slurm()
    partitions = slurm.partitions()
    if partitions is None:
        yield Finding(
            what="Slurm",
            state=bad,
            found="its controller does not answer",
            remedy="see `sinfo` and `scontrol ping`; a running sweep waits until it does",
        )
        return
    yield Finding(what="Slurm", state="ok", found=f"partitions {', '.join(sorted(partitions))}")
    tiers = () if config is None else (None, *config.tiers)
    for tier in tiers if is_needed else ():
        assert config is not None
        options = config.options(tier)
        asked = str(options.get("partition", options.get("slurm_partition", "")))
        unknown = set(filter(None, asked.split(","))) - partitions
        if unknown:
            yield Finding(
                what="Slurm",
                state="will not work",
                found=f"there is no partition {', '.join(sorted(unknown))}"
                + (f" (tier {tier})" if tier else ""),
                remedy=f"name one of {', '.join(sorted(partitions))} in executor_options",
            )
    if slurm.keeps_accounts():
        yield Finding(what="accounting", state="ok", found="sacct answers")
    else:
        yield Finding(
            what="accounting",
            state="warning",
            found="sacct gets no answer",
            remedy="why a job ended without a report will be told from its log alone",
        )


def look_at_database(config: SweepConfig | None, folder: Path) -> Iterator[Finding]:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from carbs.launchers.controller.database import (
        database_url,
        hide_password,
        network_warning,
        without_password,
    )

    try:
        url = None if config is None else database_url(config.storage, config.storage_file)
    except LauncherError as error:
        yield Finding(
            what="database",
            state="will not work",
            found=str(error),
            remedy="set it, as for `carbs sweep`, which reads it too",
        )
        return
    shown = f"SQLite in {folder}" if url is None else without_password(url)
    is_file = url is None or url.startswith("sqlite")
    try:
        started = time.monotonic()
        if is_file:
            _try_sqlite(folder if url is None else Path(make_url(url).database or "").parent)
        else:
            _try_server(str(url))
        took = time.monotonic() - started
    except (SQLAlchemyError, ImportError, OSError, sqlite3.Error) as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines() or [""]
        yield Finding(
            what="database",
            state="will not work",
            found=f"{shown}: {hide_password(said[0], url)}",
            remedy="name a folder that you may write to, on a disk that can lock files"
            if is_file
            else "check the storage URL, and that its server runs and can be reached from here",
        )
        return
    warning = network_warning(folder.resolve(), url)
    if warning is not None:
        yield Finding(what="database", state="warning", found=shown, remedy=warning)
    elif took > _SLOW_DATABASE_S:
        yield Finding(
            what="database",
            state="warning",
            found=f"{shown} took {took:.1f} s to answer",
            remedy="a sweep asks it several times a trial: use one that is nearer",
        )
    else:
        yield Finding(what="database", state="ok", found=f"{shown}, {1000 * took:.0f} ms")


def _try_sqlite(folder: Path) -> None:
    """Make a database in the folder, or in the nearest above it that exists; and remove it."""
    with tempfile.TemporaryDirectory(dir=_existing(folder), prefix=".carbs-doctor-") as aside:
        connection = sqlite3.connect(Path(aside) / "try.db")
        try:
            connection.execute("CREATE TABLE try (x INTEGER)")
            connection.execute("INSERT INTO try VALUES (1)")
            connection.commit()
        finally:
            connection.close()


def _try_server(url: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
    finally:
        engine.dispose()


def look_at_disk(folder: Path) -> Iterator[Finding]:
    place = _existing(folder)
    if not os.access(place, os.W_OK):
        yield Finding(
            what="disk",
            state="will not work",
            found=f"{place} cannot be written to",
            remedy="name another --folder",
        )
        return
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    found = f"{usage.free / 2**30:.1f} GiB free at {place}"
    is_scarce = inodes.f_files > 0 and inodes.f_favail < _LITTLE_INODES
    if usage.free < _NO_SPACE:
        state: Literal["ok", "warning", "will not work"] = "will not work"
    else:
        state = "warning" if usage.free < _LITTLE_SPACE or is_scarce else "ok"
    if is_scarce:
        found += f", and room for {inodes.f_favail} files"
    remedy = "" if state == "ok" else "make room, or name another --folder: checkpoints need space"
    yield Finding(what="disk", state=state, found=found, remedy=remedy)


def look_at_clock(folder: Path) -> Iterator[Finding]:
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=".carbs-doctor-") as file:
            before = time.time()
            file.write(b"now")
            file.flush()
            os.utime(file.name)
            apart = Path(file.name).stat().st_mtime - (before + time.time()) / 2
    except OSError:  # told of the disk
        return
    if abs(apart) > _CLOCK_WARNING_S:
        yield Finding(
            what="clock",
            state="warning",
            found=f"the file system's is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}",
            remedy="ages and time limits will be off by as much: set this host's clock by ntp",
        )
    else:
        yield Finding(what="clock", state="ok", found="that of the file system agrees")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())


def add_commands(app: typer.Typer) -> None:
    """The one, under its name."""
    app.command("doctor")(doctor)
