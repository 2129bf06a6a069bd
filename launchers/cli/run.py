"""A sweep from its first suggestion to its report, as the terminal shows it."""

from __future__ import annotations

import shlex
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import typer
from threadpoolctl import threadpool_limits

from carbs.analysis.front.model import FrontModel, fit_front
from carbs.analysis.planning.plan import fit_front_law
from carbs.analysis.report.report import write_report
from carbs.launchers.cli.progress import Progress, format_params, measured
from carbs.launchers.cli.terminal import PLAIN, console, working
from carbs.launchers.controller.check import Check, predict_check, run_check
from carbs.launchers.controller.config import CheckConfig, SweepConfig
from carbs.launchers.controller.database import database_url, network_warning
from carbs.launchers.controller.sweep import Interrupted, Sweep
from carbs.launchers.controller.warm_start import CONFIG_FILE
from carbs.launchers.errors import SweepFileError, SweepStoppedError


def show_plan(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    """What a sweep would submit first. Nothing is submitted, and no folder is made."""
    check_function(config, python_path)
    with tempfile.TemporaryDirectory() as aside:
        has_begun = (folder / CONFIG_FILE).exists()
        sweep = Sweep(config, folder if has_begun else Path(aside) / folder.name, python_path)
        planned = sweep.plan(min(config.max_in_flight, 3), None if has_begun else folder)
        for trial in planned:
            suggestion = trial.suggestion
            cost = suggestion.predicted_cost
            console.print(f"trial {suggestion.id}: {format_params(suggestion.params)}", **PLAIN)
            console.print(f"  tier: {trial.tier or 'none'}", **PLAIN)
            foreseen = "unknown" if cost is None else f"{cost:.4g} {config.cost_unit}"
            console.print(f"  predicted cost: {foreseen}", **PLAIN)
            if trial.script is None:
                console.print(f"  executor {config.executor}: no script", **PLAIN)
            else:
                console.print(trial.script, **PLAIN)
    console.print("dry run: nothing was submitted", **PLAIN)


def run_sweep(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    """Begin a sweep or continue it; then say what it has taught.

    Args:
        python_path: where the training function may lie, besides the usual places.

    Raises:
        LauncherError: the sweep cannot begin, or not go on.
        typer.Exit: the user has interrupted it.
    """
    check_function(config, python_path)
    # The controller thinks for a moment and jobs compute for long: leave them the machine.
    threadpool_limits(1)
    warning = network_warning(folder.resolve(), database_url(config.storage, config.storage_file))
    if warning is not None:
        console.print(f"warning: {warning}", **PLAIN)
    say = partial(console.print, **PLAIN)
    sweep = Sweep(config, folder, python_path, notify=say)
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


def check_function(config: SweepConfig, python_path: tuple[str, ...]) -> None:
    """Whether the training function's module is there, without importing it: that may take long."""
    module = config.function.partition(":")[0]
    before = list(sys.path)
    try:
        sys.path[:0] = python_path
        is_found = find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        is_found = False
    finally:
        sys.path[:] = before  # what lies there is the job's to import, not ours
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
        with working("fitting what the trials have taught"):
            front = _front(sweep, config.level if config else CheckConfig().level)
    except SweepStoppedError as error:  # the search itself is done and recorded
        console.print(f"note: {error}", **PLAIN)
        return
    check = None
    if config is not None:
        with working("predicting the check run"):
            check = predict_check(sweep, config, front)
        console.print(f"best configuration at {config.cost_factor:g} times the dearest run:")
        console.print(f"  {format_params(check.params)}", **PLAIN)
        for warning in check.warnings:
            console.print(f"  note: {warning}", **PLAIN)
        if not check.has_ended:
            console.print(check.line(), **PLAIN)
            console.print(check.cost_line(sweep.config.cost_unit), **PLAIN)
            console.print("check run: training it now")
        check = run_check(sweep, check)
    with working("writing the report"):
        page = _write_report(sweep, front, check)
    if check is not None:
        console.print(check.line(), **PLAIN)
        console.print(check.cost_line(sweep.config.cost_unit), **PLAIN)
    console.print(f"report: {page}", **PLAIN)


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
        console.print(f"note: no law of loss over cost: {error}", **PLAIN)
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


def rewrite_report(folder: Path, storage: str | None) -> Path:
    """Fit a sweep anew, finished or not, and write its report; returns the page."""
    sweep = Sweep.open(folder, storage)
    check_file = sweep.folder / "check.json"
    check = Check.model_validate_json(check_file.read_text()) if check_file.exists() else None
    level = sweep.config.check.level if sweep.config.check else CheckConfig().level
    return _write_report(sweep, _front(sweep, level), check)
