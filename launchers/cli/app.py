"""The ``carbs`` command."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from analysis.front.model import FrontModel, fit_front
from analysis.planning.plan import fit_front_law
from analysis.report.report import write_report
from launchers.cli.analysis import add_commands
from launchers.cli.progress import Progress, format_params, measured
from launchers.cli.status import find_sweep, log_paths, read_status, screen
from launchers.controller.check import Check, predict_check, run_check
from launchers.controller.config import CheckConfig, SweepConfig, load_sweep
from launchers.controller.database import database_url, network_warning
from launchers.controller.sweep import Interrupted, Sweep, read_config
from launchers.controller.warm_start import CONFIG_FILE
from launchers.errors import LauncherError, SweepFileError, SweepStoppedError

app = typer.Typer(
    help="Cost-aware hyperparameter and scaling-law optimizer for training language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
add_commands(app)
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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be submitted first, and submit nothing."),
    ] = False,
) -> None:
    """Search as a sweep file says; then analyse, and check the prediction if the file asks for it.

    Ctrl-C leaves running jobs running; the same command continues. Ctrl-C twice cancels them.
    """
    config = load_sweep(file, seed=seed, max_trials=max_trials, executor=executor)
    python_path = (str(file.resolve().parent),)
    folder = folder or Path("sweeps") / config.name
    if dry_run:
        _dry_run(config, folder, python_path)
    else:
        _run(config, folder, python_path)


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


WhereArgument = Annotated[
    Path | None,
    typer.Argument(
        help="The sweep: its file, its folder, or its study's name. Without it, the only one here."
    ),
]
StorageOption = Annotated[
    str | None, typer.Option(help="The study's database, where the folder does not name it.")
]


@app.command()
def status(
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How a sweep stands: trials, cost, jobs in flight, excluded nodes, last failures."""
    sweep = _find(where, folder, storage)
    if as_json:
        print(read_status(sweep).model_dump_json(indent=1))
        return
    if not watch:
        console.print(screen(read_status(sweep)))
        return
    with Live(console=console, refresh_per_second=1) as live:
        while True:
            try:
                live.update(screen(read_status(sweep)), refresh=True)
                time.sleep(2)
            except KeyboardInterrupt:
                return


@app.command()
def logs(
    trial: Annotated[int, typer.Argument(help="Its number.")],
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
    attempt: Annotated[int | None, typer.Option(help="Instead of the newest.")] = None,
    lines: Annotated[int, typer.Option(help="Of each file, the last ones; 0 for all.")] = 0,
) -> None:
    """What a trial's job has printed."""
    paths = log_paths(_find(where, folder, storage), trial, attempt)
    if not paths:
        console.print(f"trial {trial} has printed nothing yet", **_PLAIN)
    for path in paths:
        console.print(f"==> {path}", **_PLAIN)
        text = path.read_text(errors="replace").splitlines() if path.exists() else []
        console.print("\n".join(text[-lines:]), **_PLAIN)


@app.command()
def retry(
    trial: Annotated[int, typer.Argument(help="Its number.")],
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
) -> None:
    """Try a trial again: a running one on another machine, an ended one as a new trial."""
    console.print(_find(where, folder, storage).retry(trial), **_PLAIN)


@app.command()
def drop(
    trial: Annotated[int, typer.Argument(help="Its number.")],
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
) -> None:
    """Take a trial out of the sweep: the search forgets it, and its job is cancelled."""
    console.print(_find(where, folder, storage).drop(trial), **_PLAIN)


@app.command()
def cancel(
    where: WhereArgument = None, folder: FolderOption = None, storage: StorageOption = None
) -> None:
    """Cancel a sweep's jobs, and its controller. The sweep can be continued afterwards."""
    n_jobs = _find(where, folder, storage).cancel()
    console.print(f"{n_jobs} jobs cancelled; `carbs sweep` goes on where the sweep was", **_PLAIN)


def _find(where: Path | None, folder: Path | None, storage: str | None) -> Sweep:
    """The sweep that the user means."""
    if where is not None and where.is_file():
        config = load_sweep(where)
        found = find_sweep(folder or Path("sweeps") / config.name)
        # As it was last run: the file may have changed since, or another executor was asked for.
        last = read_config(found).model_copy(
            update={"storage": config.storage, "storage_file": config.storage_file}
        )
        return Sweep(last, found)
    return Sweep.open(find_sweep(folder or where), storage)


def _dry_run(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    _check_function(config, python_path)
    with tempfile.TemporaryDirectory() as aside:
        has_begun = (folder / CONFIG_FILE).exists()
        sweep = Sweep(config, folder if has_begun else Path(aside) / folder.name, python_path)
        planned = sweep.plan(min(config.max_in_flight, 3), None if has_begun else folder)
        for trial in planned:
            suggestion = trial.suggestion
            cost = suggestion.predicted_cost
            console.print(f"trial {suggestion.id}: {format_params(suggestion.params)}", **_PLAIN)
            console.print(f"  tier: {trial.tier or 'none'}", **_PLAIN)
            foreseen = "unknown" if cost is None else f"{cost:.4g} {config.cost_unit}"
            console.print(f"  predicted cost: {foreseen}", **_PLAIN)
            if trial.script is None:
                console.print(f"  executor {config.executor}: no script", **_PLAIN)
            else:
                console.print(trial.script, **_PLAIN)
    console.print("dry run: nothing was submitted", **_PLAIN)


def _run(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    import torch  # slow to import, and no other command needs it

    _check_function(config, python_path)
    # The controller thinks for a moment and jobs compute for long: leave them the machine.
    torch.set_num_threads(1)
    warning = network_warning(folder.resolve(), database_url(config.storage, config.storage_file))
    if warning is not None:
        _say(f"warning: {warning}")
    sweep = Sweep(config, folder, python_path, notify=_say)
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
    except Interrupted as interrupted:
        jobs = "its jobs are cancelled" if interrupted.is_cancelled else "running jobs go on"
        console.print(
            f"interrupted: {jobs}. The same command continues:\n  carbs {shlex.join(sys.argv[1:])}",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


def _say(message: str) -> None:
    console.print(message, **_PLAIN)


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
