"""``carbs prepare``: the reference job's data, made ready before a sweep begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carbs.launchers.cli.terminal import PLAIN, console, working
from carbs.launchers.cli.where import FolderOption
from carbs.launchers.errors import SweepFileError

if TYPE_CHECKING:
    from carbs.launchers.controller.config import SweepConfig
    from carbs.launchers.lm.data.corpus import Corpus


def prepare(
    file: Annotated[Path, typer.Argument(help="The sweep file (YAML).")],
    folder: FolderOption = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="By default as many as there are processors.")
    ] = None,
) -> None:
    """Tokenize a sweep's text and measure its contamination, before its first job would.

    For sweeps of the reference job. Killed, it goes on where it was.
    """
    with working("starting"):
        from carbs.launchers.controller.config import load_sweep
        from carbs.launchers.lm.config import configure
        from carbs.launchers.lm.train import prepare_run

    config = load_sweep(file)
    if config.command is not None:
        raise SweepFileError(f"{file}: prepare is for the reference job, and this runs a command")
    folder = folder or Path("sweeps") / config.name
    shared = folder / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    for params in _of_each_tokenizer(config):
        try:
            found = prepare_run(configure(params, config.settings), shared, n_processes=processes)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise SweepFileError(f"{file}: {error}") from None
        _say(found.corpus)
    overlaps = (found.contamination or {}).get("questions", {})
    for name, asked in found.questions.sets.items():
        overlap = f", {overlaps[name]['share']:.0%} overlap with the text" if overlaps else ""
        console.print(f"questions {name}: {len(asked)}{overlap}", **PLAIN)
    console.print(f"prepared: {shared}; `carbs sweep {file}` finds it there", **PLAIN)


def _of_each_tokenizer(config: SweepConfig) -> list[dict[str, Any]]:
    """The centre of the sweep, with every tokenizer that it may choose."""
    from carbs.search_space import SearchSpace
    from carbs.spaces import ChoiceSpace

    center: dict[str, Any] = dict(SearchSpace(config.parameters).center_params)
    for param in config.parameters:
        if param.name == "tokenizer" and isinstance(param.space, ChoiceSpace):
            return [{**center, param.name: choice} for choice in param.space.choices]
    return [center]


def _say(corpus: Corpus) -> None:
    for name, component in corpus.components.items():
        train, held_out = component.side("train"), component.side("held_out")
        console.print(
            f"{name}: {train.documents} documents with {train.tokens} tokens of "
            f"{corpus.tokenizer.name} to train on, {held_out.documents} held out",
            **PLAIN,
        )


def add_commands(app: typer.Typer) -> None:
    """It, under its name."""
    app.command("prepare")(prepare)
