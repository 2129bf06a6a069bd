"""The ``carbs`` command."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from analysis.hyperparameters import FrontModel, fit_front
from analysis.plan import fit_front_law
from analysis.report import write_report
from launchers.check import Check, predict_check, run_check
from launchers.config import CheckConfig, SweepConfig, load_sweep
from launchers.errors import LauncherError, SweepFileError, SweepStoppedError
from launchers.progress import Progress, format_params, measured
from launchers.sweep import Interrupted, Sweep

app = typer.Typer(
    help="Cost-aware hyperparameter and scaling-law optimizer for training language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}

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


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a sweep.")],
    storage: Annotated[
        str | None, typer.Option(help="The study's database, where the sweep file names one.")
    ] = None,
) -> None:
    """Write the report of a sweep anew, finished or not."""
    sweep = Sweep.open(folder, storage)
    check_file = sweep.folder / "check.json"
    check = Check.model_validate_json(check_file.read_text()) if check_file.exists() else None
    level = sweep.config.check.level if sweep.config.check else CheckConfig().level
    page = _write_report(sweep, _front(sweep, level), check)
    console.print(f"report: {page}", soft_wrap=True)


def _run(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    _check_function(config, python_path)
    # The controller thinks for a moment and jobs compute for long: leave them the machine.
    torch.set_num_threads(1)
    sweep = Sweep(config, folder, python_path)
    try:
        with sweep.controlling():
            with Progress(console, config.cost_unit) as progress:
                progress.changed(sweep.status())
                status = sweep.run(progress.changed, progress.ended)
            n_done = len(measured(status))
            n_stopped = len(status.records.observations) - n_done
            stopped = f"{n_stopped} stopped early, " if n_stopped else ""
            console.print(
                f"{n_done} trials done, "
                f"{len(status.records.failures)} failed, "
                f"{stopped}cost spent {status.spent:.1f} {config.cost_unit}"
            )
            _conclude(sweep)
    except Interrupted:
        console.print(
            "interrupted: running jobs go on. The same command continues:\n"
            f"  carbs {shlex.join(sys.argv[1:])}",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


def _check_function(config: SweepConfig, python_path: tuple[str, ...]) -> None:
    """Whether the training function's module is there, without importing it: that may take long."""
    module = config.function.partition(":")[0]
    sys.path[:0] = [folder for folder in python_path if folder not in sys.path]
    try:
        is_found = find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        is_found = False
    if not is_found:
        places = "".join(f" or in {folder}" for folder in python_path)
        raise SweepFileError(
            f"function {config.function!r}: there is no module {module!r} among the installed "
            f"packages{places}: put the file there, or correct the name"
        )


def _conclude(sweep: Sweep) -> None:
    """What the sweep has taught: the laws, the check run, the report."""
    config = sweep.config.check
    try:
        front = _front(sweep, config.level if config else CheckConfig().level)
    except SweepStoppedError as error:  # the search itself is done and recorded
        console.print(f"note: {error}", **_PLAIN)
        return
    check = None
    if config is not None:
        check = predict_check(sweep, config, front)
        console.print(f"best configuration at {config.cost_factor:g} times the dearest run:")
        console.print(f"  {format_params(check.params)}", **_PLAIN)
        for warning in check.warnings:
            console.print(f"  note: {warning}", **_PLAIN)
        if not check.has_ended:
            console.print(check.line(), **_PLAIN)
            console.print(check.cost_line(sweep.config.cost_unit), **_PLAIN)
            console.print("check run: training it now")
        check = run_check(sweep, check)
    page = _write_report(sweep, front, check)
    if check is not None:
        console.print(check.line(), **_PLAIN)
        console.print(check.cost_line(sweep.config.cost_unit), **_PLAIN)
    console.print(f"report: {page}", **_PLAIN)


def _front(sweep: Sweep, level: float) -> FrontModel:
    known = sweep.status().records
    try:
        return fit_front(
            sweep.space,
            known.observations,
            known.failures,
            direction=sweep.config.direction,
            level=level,
            seed=sweep.config.seed,
        )
    except ValueError as error:
        raise SweepStoppedError(f"no analysis of {sweep.folder}: {error}") from None


def _write_report(sweep: Sweep, front: FrontModel, check: Check | None) -> Path:
    try:
        law = fit_front_law(front)
    except ValueError as error:
        console.print(f"note: no law of loss over cost: {error}", **_PLAIN)
        law = None
    facts = check.model_dump(exclude_none=True) if check is not None else None
    return write_report(
        sweep.folder,
        sweep.study,
        front,
        law,
        facts,
        cost_unit=sweep.config.cost_unit,
        output_unit=sweep.config.output_unit,
    )


def main() -> None:
    """The entry point: errors of ours in plain words, others with their traceback."""
    try:
        app()
    except LauncherError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
