"""``carbs questions`` and ``carbs unseal``: what models are asked, and what stays unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carbs.launchers.cli.terminal import PLAIN, console
from carbs.launchers.cli.where import FolderOption, StorageOption, WhereArgument, find
from carbs.launchers.errors import LauncherError


def questions(
    file: Annotated[Path, typer.Argument(help="JSON Lines (also .gz) or Parquet.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write them as they are asked, one JSON a line."),
    ] = None,
    n_shown: Annotated[int, typer.Option("--show", help="How many to show.")] = 1,
) -> None:
    """How a file of questions is read: its shape, how many there are, and the first ones."""
    from carbs.launchers.lm.answers import load_questions, save_questions
    from carbs.launchers.lm.shapes import shape_of

    try:
        found = load_questions(file)
        shape = shape_of(file)
    except (OSError, ValueError) as error:
        raise LauncherError(str(error)) from None
    n_choices = sorted({len(question.choices) for question in found})
    sizes = [len(question.prompt.encode()) for question in found]
    console.print(
        f"{file}: {len(found)} questions{f' in the shape of {shape}' if shape else ''}, of "
        f"{'-'.join(map(str, dict.fromkeys((n_choices[0], n_choices[-1]))))} choices, with prompts "
        f"of up to {max(sizes)} bytes",
        **PLAIN,
    )
    for question in found[:n_shown]:
        console.print(question.prompt, **PLAIN)
        for place, choice in enumerate(question.choices):
            console.print(f"{'*' if place == question.answer else ' '} {choice!r}", **PLAIN)
    if output is not None:
        save_questions(output, found)
        console.print(f"written: {output}", **PLAIN)


def unseal_command(
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Open the sealed question sets for good: who and when goes on record."""
    from carbs.launchers.controller.answers import read_seal, unseal

    sweep = find(where, folder, storage)
    seal = read_seal(sweep)
    if seal is not None and seal.opened is None and not is_sure:
        names = ", ".join(seal.names)
        console.print(
            f"{names}: {seal.n_trials} trials have answered, and nobody has seen how. What is "
            "chosen afterwards may rest on it; that they were opened stays on record.",
            **PLAIN,
        )
        typer.confirm("Open them?", abort=True)
    record = unseal(sweep)
    console.print(
        f"{', '.join(record['sets'])}: opened by {record['who']} at {record['when']}, when "
        f"{record['trials']} trials had answered",
        **PLAIN,
    )
    console.print(f"carbs report {sweep.folder} and carbs export show them now", **PLAIN)


def add_commands(app: typer.Typer) -> None:
    """Both, under their names."""
    app.command("questions")(questions)
    app.command("unseal")(unseal_command)
