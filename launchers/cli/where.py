"""Which sweep a command is about: what the user may say, and what is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from carbs.launchers.controller.sweep import Sweep


def _here(incomplete: str) -> list[str]:
    """For the shell's completion: sweep files, and the sweeps in ``sweeps/``."""
    names = [path.parent.name for path in Path("sweeps").glob("*/sweep.json")]
    files = [str(path) for path in Path().glob("*.y*ml")]
    return [name for name in (*names, *files) if name.startswith(incomplete)]


FolderOption = Annotated[
    Path | None,
    typer.Option(help="Where the study, the jobs and the report go. The same folder continues."),
]
WhereArgument = Annotated[
    Path | None,
    typer.Argument(
        help="The sweep: its file, its folder, or its study's name. Without it, the only one here.",
        autocompletion=_here,
    ),
]
StorageOption = Annotated[
    str | None, typer.Option(help="The study's database, where the folder does not name it.")
]


def find(where: Path | None, folder: Path | None, storage: str | None) -> Sweep:
    """The sweep that the user means.

    Raises:
        FolderError: there is none, or several.
    """
    from carbs.launchers.cli.status import find_sweep
    from carbs.launchers.controller.config import load_sweep
    from carbs.launchers.controller.sweep import Sweep

    if where is not None and where.is_file():
        config = load_sweep(where)
        found = find_sweep(folder or Path("sweeps") / config.name)
        # As it was last run: the file may have changed since, or another executor was asked for.
        return Sweep.open(found, storage or config.storage, config.storage_file)
    return Sweep.open(find_sweep(folder or where), storage)
