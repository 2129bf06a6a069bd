"""A sweep from its first suggestion to its report, as the terminal shows it."""

from __future__ import annotations

import ast
import difflib
import shlex
import signal
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import typer
from threadpoolctl import threadpool_limits

from carbs.analysis.front.model import FrontModel, fit_front
from carbs.analysis.planning.plan import fit_front_law
from carbs.analysis.report.report import write_report
from carbs.launchers.cli.progress import Progress, format_params, measured
from carbs.launchers.cli.status import keep_command
from carbs.launchers.cli.terminal import PLAIN, console, working
from carbs.launchers.controller import commands
from carbs.launchers.controller.answers import answered_sets, read_seal
from carbs.launchers.controller.check import Check, predict_check, run_check
from carbs.launchers.controller.config import CheckConfig, SweepConfig
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.database import database_url, network_warning
from carbs.launchers.controller.interrupts import Interrupted
from carbs.launchers.controller.recovery import recover_study
from carbs.launchers.controller.rehearsal import planned_trials
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.errors import MissingPackageError, SweepFileError, SweepStoppedError
from carbs.launchers.job.command import Command


def show_plan(config: SweepConfig, folder: Path, python_path: tuple[str, ...]) -> None:
    """What a sweep would submit first. Nothing is submitted, and no folder or study is touched."""
    check_code(config, python_path)
    say = partial(console.print, **PLAIN)
    for trial in planned_trials(config, folder, python_path, min(config.max_in_flight, 3), say):
        suggestion = trial.suggestion
        cost = suggestion.predicted_cost
        say(f"trial {suggestion.id}: {format_params(suggestion.params)}")
        say(f"  tier: {trial.tier or 'none'}")
        foreseen = "unknown" if cost is None else f"{cost:.4g} {config.cost_unit}"
        say(f"  predicted cost: {foreseen}")
        say(f"  executor {config.executor}: no script" if trial.script is None else trial.script)
    say("dry run: nothing was submitted")


def run_sweep(
    config: SweepConfig, folder: Path, python_path: tuple[str, ...], *, retry_failed: bool = False
) -> None:
    """Begin a sweep or continue it; then say what it has taught.

    Args:
        python_path: where the training function may lie, besides the usual places.
        retry_failed: whether to try the configurations of failed trials again first.

    Raises:
        LauncherError: the sweep cannot begin, or not go on.
        typer.Exit: the user has interrupted it.
    """
    check_code(config, python_path)
    # The controller thinks for a moment and jobs compute for long: leave them the machine.
    threadpool_limits(1)
    warning = network_warning(folder.resolve(), database_url(config.storage, config.storage_file))
    if warning is not None:
        console.print(f"warning: {warning}", **PLAIN)
    say = partial(console.print, **PLAIN)
    sweep = Sweep(config, folder, python_path, notify=say)
    again = shlex.join(["carbs", *(arg for arg in sys.argv[1:] if arg != "--retry-failed")])
    try:
        with Controller(sweep) as controller:
            keep_command(sweep.folder, again)
            if retry_failed:
                say(f"{commands.retry_failed(sweep)} failed trials are tried again as new trials")
            with Progress(console, config.cost_unit) as progress:
                progress.changed(sweep.status())
                status = controller.run(progress.changed, progress.ended)
            n_done = len(measured(status))
            n_stopped = len(status.records.observations) - n_done
            stopped = f"{n_stopped} stopped early, " if n_stopped else ""
            console.print(
                f"{n_done} trials done, "
                f"{len(status.records.failures)} failed, "
                f"{stopped}cost spent {status.spent:.1f} {config.cost_unit}"
            )
            _conclude(controller)
    except Interrupted as interrupted:
        jobs = f" ({', '.join(interrupted.jobs)})" if interrupted.jobs else ""
        what = (
            f"its jobs are cancelled{jobs}"
            if interrupted.is_cancelled
            else f"running jobs go on{jobs}"
            if jobs
            else "no job is running"
        )
        name = "interrupted" if interrupted.signal == signal.SIGINT else "terminated"
        console.print(f"{name}: {what}. The same command continues:\n  {again}", **PLAIN)
        if jobs and not interrupted.is_cancelled:
            folder_name = shlex.quote(str(folder))
            console.print(f"To end the jobs as well:\n  carbs cancel {folder_name}", **PLAIN)
        raise typer.Exit(128 + interrupted.signal) from None


def recover_sweep(folder: Path, storage: str | None) -> None:
    """Make a study anew, and say of what."""
    recovered = recover_study(folder, storage)
    if recovered.damaged is not None:
        console.print(f"the old database is now {recovered.damaged}", **PLAIN)
    status = Sweep.open(folder, storage).status()
    known = status.records
    console.print(
        f"{recovered.n_trials} trials recovered, {recovered.n_copied} of them from the copy: "
        f"{len(known.observations)} with a result, {len(known.failures)} failed, "
        f"{len(known.pending)} that the next `carbs sweep` looks after",
        **PLAIN,
    )
    for line in recovered.untold:
        console.print(f"  not recovered: {line}", **PLAIN)


def check_code(config: SweepConfig, python_path: tuple[str, ...]) -> None:
    """Whether what the sweep is to run is there."""
    command = config.command_line
    if command is not None:
        _check_command(command, Path(next(iter(python_path), ".")))
    elif config.function is not None:
        _check_function(config.function, python_path)


def _check_command(command: Command, folder: Path) -> None:
    """Whether its program and its script are there. What jobs set up first may bring a program."""
    if command.is_shell:
        return
    program, *arguments = command.words
    if "{" in program:
        pass
    elif "/" in program and not (folder / program).exists():
        raise SweepFileError(f"command: there is no {program!r} in {folder}, where it is to run")
    elif "/" not in program and which(program) is None:
        console.print(f"warning: command: there is no program {program!r} here", **PLAIN)
    script = next(iter(arguments), "")
    if script.endswith((".py", ".sh")) and "{" not in script and not (folder / script).exists():
        raise SweepFileError(f"command: there is no {script!r} in {folder}, where it is to run")


def _check_function(name: str, python_path: tuple[str, ...]) -> None:
    """Whether the training function is there, without importing it: that may take long."""
    module, _, function = name.partition(":")
    before = list(sys.path)
    try:
        sys.path[:0] = python_path
        spec = find_spec(module)
    except ModuleNotFoundError:  # of a parent package
        spec = None
    finally:
        sys.path[:] = before  # what lies there is the job's to import, not ours
    if spec is None:
        places = "".join(f" or in {folder}" for folder in python_path)
        raise SweepFileError(
            f"function {name!r}: there is no module {module!r} among the installed "
            f"packages{places}: put the file there, or correct the name"
        )
    file = Path(spec.origin or "")
    names = _names(file.read_bytes()) if file.suffix == ".py" else None
    if names is not None and function not in names:
        close = difflib.get_close_matches(function, names, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ": correct the name"
        raise SweepFileError(f"function {name!r}: {file} has no {function!r}{meant}")


def _names(source: bytes) -> set[str] | None:
    """What a module may define, by its text; None where that does not say all."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # for the job to tell
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name):
                names.add(name)
            case ast.Import(names=imported) | ast.ImportFrom(names=imported):
                names |= {alias.asname or alias.name for alias in imported}
    return None if names & {"*", "__getattr__", "globals", "vars", "setattr", "exec"} else names


def _conclude(controller: Controller) -> None:
    """What the sweep has taught: the laws, the check run, the report."""
    sweep, config = controller.sweep, controller.sweep.config.check
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
        check = run_check(controller, check)
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


def _write_report(
    sweep: Sweep, front: FrontModel, check: Check | None, is_interactive: bool = False
) -> Path:
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
        is_interactive=is_interactive,
        answers=answered_sets(sweep),
        seal=read_seal(sweep),
    )


def rewrite_report(folder: Path, storage: str | None, is_interactive: bool = False) -> Path:
    """Fit a sweep anew, finished or not, and write its report; returns the page.

    Raises:
        MissingPackageError: plotly is asked for, and not installed.
    """
    if is_interactive and find_spec("plotly") is None:
        raise MissingPackageError("--interactive needs plotly: pip install 'carbs-search[plotly]'")
    sweep = Sweep.open(folder, storage)
    check_file = sweep.folder / "check.json"
    check = Check.model_validate_json(check_file.read_text()) if check_file.exists() else None
    level = sweep.config.check.level if sweep.config.check else CheckConfig().level
    return _write_report(sweep, _front(sweep, level), check, is_interactive)
