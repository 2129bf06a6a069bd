"""The ``carbs`` command."""

from __future__ import annotations

import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from launchers.config import SweepConfig, load_sweep
from launchers.errors import LauncherError
from launchers.progress import Progress
from launchers.sweep import Interrupted, Sweep

app = typer.Typer(
    help="Cost-aware hyperparameter and scaling-law optimizer for training language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

FolderOption = Annotated[
    Path | None,
    typer.Option(help="Where the study, the jobs and the report go. The same folder continues."),
]
SeedOption = Annotated[int | None, typer.Option(help="Instead of the sweep file's.")]
TrialsOption = Annotated[int | None, typer.Option(help="Instead of the sweep file's.")]
ExecutorOption = Annotated[
    str | None, typer.Option(help="Instead of the sweep file's: local, slurm or debug.")
]


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep file (YAML).")],
    folder: FolderOption = None,
    seed: SeedOption = None,
    max_trials: TrialsOption = None,
    executor: ExecutorOption = None,
) -> None:
    """Search as a sweep file says; then analyse, and check the prediction if the file asks for it.

    Ctrl-C leaves running jobs running; the same command continues.
    """
    config = load_sweep(file, seed=seed, max_trials=max_trials, executor=executor)
    python_path = (str(file.resolve().parent),)
    _run(config, folder or Path("sweeps") / config.name, python_path)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where everything goes. The same folder continues.")
    ] = Path("carbs-demo"),
    seed: SeedOption = None,
    executor: ExecutorOption = None,
) -> None:
    """The main job in small: some 60 real training runs, a report, and a check run."""
    with as_file(files("launchers") / "demo.yaml") as file:
        config = load_sweep(file, seed=seed, executor=executor)
    _run(config, folder, ())


def _run(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    # The controller thinks for a moment and jobs compute for long: leave them the machine.
    torch.set_num_threads(1)
    sweep = Sweep(config, folder, python_path)
    try:
        with sweep.controlling():
            with Progress(console) as progress:
                progress.changed(sweep.status())
                status = sweep.run(progress.changed, progress.ended)
            console.print(
                f"{len(status.records.observations)} trials done, "
                f"{len(status.records.failures)} failed, cost spent {status.spent:.1f} s"
            )
    except Interrupted:
        console.print(
            "interrupted: running jobs go on. The same command continues:\n"
            f"  {' '.join(['carbs', *sys.argv[1:]])}",
            markup=False,
        )
        raise typer.Exit(130) from None


def main() -> None:
    """The entry point: errors of ours in plain words, others with their traceback."""
    try:
        app()
    except LauncherError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
