"""The ``carbs`` command: what the user may type. A command imports what it needs when it runs."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from carbs.launchers.cli import analysis, data, doctor, questions, sweep_file, trials
from carbs.launchers.cli.terminal import PLAIN, JsonOption, console, working
from carbs.launchers.cli.where import FolderOption, StorageOption, WhereArgument, find
from carbs.launchers.errors import LauncherError

app = typer.Typer(
    help="Cost-aware hyperparameter and scaling-law optimizer for training language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for module in (sweep_file, data, doctor, analysis, trials, questions):
    module.add_commands(app)

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
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Try the configurations of failed trials again: a bug is mended."
        ),
    ] = False,
) -> None:
    """Search as a sweep file says; then analyse, and check the prediction if the file asks for it.

    The same command continues, also with other bounds, parameters, budget or options in the file.
    Ctrl-C leaves running jobs running; Ctrl-C twice cancels them.
    """
    with working("starting"):
        from carbs.launchers.cli.run import run_sweep, show_plan
        from carbs.launchers.controller.config import load_sweep

    config = load_sweep(file, seed=seed, max_trials=max_trials, executor=executor)
    python_path = tuple(dict.fromkeys((str(file.resolve().parent), str(Path.cwd()))))
    folder = folder or Path("sweeps") / config.name
    if dry_run:
        show_plan(config, folder, python_path)
    else:
        run_sweep(config, folder, python_path, retry_failed=retry_failed)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where everything goes. The same folder continues.")
    ] = Path("carbs-demo"),
    seed: SeedOption = None,
    executor: ExecutorOption = None,
) -> None:
    """The main job in small: some 60 real training runs, a report, and a check run."""
    with working("starting"):
        from carbs.launchers.cli.run import run_sweep
        from carbs.launchers.controller.config import load_sweep

    with as_file(files("carbs.launchers") / "demo.yaml") as file:
        config = load_sweep(file, seed=seed, executor=executor)
    run_sweep(config, folder, ())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a sweep.")],
    storage: Annotated[
        str | None, typer.Option(help="The study's database, where the sweep file names one.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option(help="Let the front show a trial's parameters (needs plotly; 5 MB).")
    ] = False,
) -> None:
    """Write the report of a sweep anew, finished or not."""
    with working("fitting the sweep"):
        from carbs.launchers.cli.run import rewrite_report

        page = rewrite_report(folder, storage, interactive)
    console.print(f"report: {page}", soft_wrap=True)


@app.command()
def recover(
    folder: Annotated[Path, typer.Argument(help="Of a sweep whose study is damaged or gone.")],
    storage: Annotated[
        str | None, typer.Option(help="The study's database, where the sweep file names one.")
    ] = None,
) -> None:
    """Make a sweep's study anew, from its copy and the folders of its jobs."""
    from carbs.launchers.cli.run import recover_sweep

    recover_sweep(folder, storage)


@app.command()
def status(
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """How a sweep stands: trials, cost, jobs in flight, excluded nodes, last failures."""
    from rich.console import Group
    from rich.live import Live

    from carbs.launchers.cli.status import controller_line, read_status, report_line, screen

    sweep = find(where, folder, storage)
    if as_json:
        print(read_status(sweep).model_dump_json(indent=1))
        return
    if not watch:
        found = read_status(sweep)
        console.print(screen(found))
        for line in filter(None, (controller_line(found), report_line(found))):
            console.print(line, soft_wrap=True)
        return
    with Live(console=console, refresh_per_second=1) as live:
        while True:
            try:
                found = read_status(sweep)
                live.update(Group(screen(found), controller_line(found) or ""), refresh=True)
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
    from carbs.launchers.cli.status import log_paths

    paths = log_paths(find(where, folder, storage), trial, attempt)
    if not paths:
        console.print(f"trial {trial} has printed nothing yet", **PLAIN)
    for path in paths:
        console.print(f"==> {path}", **PLAIN)
        text = path.read_text(errors="replace").splitlines() if path.exists() else []
        console.print("\n".join(text[-lines:]), **PLAIN)


@app.command()
def retry(
    trial: Annotated[int, typer.Argument(help="Its number.")],
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
) -> None:
    """Try a trial again: a running one on another machine, an ended one as a new trial."""
    from carbs.launchers.controller import commands

    console.print(commands.retry(find(where, folder, storage), trial), **PLAIN)


@app.command()
def drop(
    trial: Annotated[int, typer.Argument(help="Its number.")],
    where: WhereArgument = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
) -> None:
    """Take a trial out of the sweep: the search forgets it, and its job is cancelled."""
    from carbs.launchers.controller import commands

    console.print(commands.drop(find(where, folder, storage), trial), **PLAIN)


@app.command()
def cancel(
    where: WhereArgument = None, folder: FolderOption = None, storage: StorageOption = None
) -> None:
    """Cancel a sweep's jobs, and its controller. The sweep can be continued afterwards."""
    from carbs.launchers.controller import commands

    n_jobs = commands.cancel(find(where, folder, storage))
    console.print(f"{n_jobs} jobs cancelled; `carbs sweep` goes on where the sweep was", **PLAIN)


def main() -> None:
    """The entry point: errors of ours in plain words, others with their traceback."""
    try:
        app()
    except LauncherError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
