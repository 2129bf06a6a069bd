"""``carbs init``, ``validate`` and ``schema``: a sweep file is begun, checked, and explained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
import yaml

from carbs.launchers.cli.terminal import PLAIN, JsonOption, console, print_json, working
from carbs.launchers.errors import LauncherError, SweepFileError

_HEAD = """\
# A sweep: what is searched, how far, and where it runs. `carbs validate {file}` checks this file,
# `carbs sweep {file}` runs it; the same command again goes on where it stopped.
# Completion and explanations in an editor: `carbs schema > carbs.schema.json`, and as first line
# yaml-language-server: $schema=carbs.schema.json

name: {name}

{runs}
# What is searched. A space is log (sizes, rates), linear, logit (fractions), choice or mixture;
# search_center is a cheap value that works, where the search starts; scale is the step over which
# the parameter matters, on a log scale in decades. min and max may be left out.
parameters:
{parameters}
# constraints: ["width % 16 == 0"]     # that every suggestion obeys

# How far.
max_trials: 30
# max_cost: 60            # of one run, in the unit of cost that it reports
# budget: 1000            # of all runs together
# direction: maximize     # where a high output is good
# cost_unit: s
# output_unit: nats

# Runs that will end off the front may be stopped at one of their reports.
# early_stopping: {{miss_share: 0.05}}

# At the end, predict the best run at so many times the dearest cost, and train it.
# check: {{cost_factor: 8}}

# Where: processes on this machine, or jobs on Slurm.
executor: local
max_in_flight: 2          # at a time
# executor: slurm
# executor_options: {{partition: gpu, gpus_per_node: 1, cpus_per_task: 8, timeout_min: 240}}

# Each trial as a run elsewhere too.
# log:
#   - wandb: {{project: {name}}}
#   - mlflow: {{tracking_uri: "sqlite:///mlflow.db"}}
#   - tensorboard: {{folder: tensorboard}}
"""

_FUNCTION = """\
# Called as function(params, job) for each trial: an importable module, or a file beside this one.
function: {function}
# settings: {{data: /data/text}}      # handed to it as job.settings
"""

_COMMAND = """\
# Run once for each trial, in this file's folder. Its last line of JSON is the result:
# {{"output": 2.31, "cost": 41.7}}; the cost may be left out, and is then the time it took.
command: {command}
"""

_EXAMPLE = '''\
"""What the sweep runs for each trial. Put your own training in place of this small one."""

import time

import torch


def train(params, job):
    """Returns the output (lower is better) and the cost of a run, here in seconds."""
    torch.set_num_threads(1)  # several runs share this machine
    torch.manual_seed(job.seed)
    x = torch.linspace(-1, 1, 256)[:, None]
    y = torch.sin(8 * x)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, params["width"]), torch.nn.Tanh(), torch.nn.Linear(params["width"], 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    started = time.perf_counter()
    for step in range(1, params["steps"] + 1):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(params["steps"] // 10, 1) == 0:  # its progress, for early stopping
            job.report(step / params["steps"], loss.item(), time.perf_counter() - started)
    n_params = sum(p.numel() for p in model.parameters())
    return {
        "output": loss.item(),
        "cost": time.perf_counter() - started,
        "metrics": {"n_params": n_params},
    }
'''

# What a parameter of such a name often is.
_USUAL = (
    (r"lr|.*learning_rate|.*_lr", "{space: log, search_center: 0.003}"),
    (
        r".*(width|hidden|d_model|dim).*",
        "{space: log, min: 16, is_integer: true, rounding_factor: 16, search_center: 32}",
    ),
    (r".*(depth|layers|heads).*", "{space: log, min: 1, is_integer: true, search_center: 2}"),
    (r".*batch.*", "{space: log, min: 1, is_integer: true, search_center: 32}"),
    (r".*(steps|tokens).*", "{space: log, min: 1, is_integer: true, search_center: 200}"),
    (r".*epochs.*", "{space: log, min: 1, is_integer: true, search_center: 3}"),
    (r".*(dropout|label_smoothing).*", "{space: logit, search_center: 0.1}"),
    (r".*(momentum|beta).*", "{space: logit, search_center: 0.9}"),
    (r".*decay.*", "{space: log, search_center: 0.1}"),
)
_ANY = "{space: log, search_center: 1.0}     # a guess: say its space and a value that works"
_NO_PARAMETERS = ("overrides",)


def init(
    file: Annotated[Path, typer.Argument(help="To write.")] = Path("sweep.yaml"),
    function: Annotated[
        str | None, typer.Option(help="Yours, as module:function; without it, an example.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(help='Your script, as "python train.py --lr {lr} --width {width}".'),
    ] = None,
) -> None:
    """Write a commented sweep file for your function or script, to be edited."""
    if function is not None and command is not None:
        raise typer.BadParameter("give --function or --command, not both")
    example = file.parent / "my_training.py"
    is_example = function is None and command is None
    for path in (file, *([example] if is_example else [])):
        if path.exists():
            raise SweepFileError(f"{path} is there already: move it away, or name another file")
    names = ["learning_rate", "width", "steps"]
    if command is not None:
        found = re.findall(r"\{(\w[\w.]*)\}", command)
        names = [name for name in dict.fromkeys(found) if name not in _NO_PARAMETERS] or names
    # Of several files in a folder each is a sweep of its own.
    named = file.parent.resolve().name if file.stem == "sweep" else file.stem
    name = re.sub(r"\W+", "-", named).strip("-") or "my-sweep"
    text = _HEAD.format(
        file=file,
        name=json.dumps(name),
        runs=_FUNCTION.format(function=function or f"{example.stem}:train")
        if command is None
        else _COMMAND.format(command=_quoted(command)),
        parameters="".join(f"  {name}: {_usual(name)}\n" for name in names),
    )
    try:
        if is_example:
            example.write_text(_EXAMPLE)
        file.write_text(text)
    except OSError as error:
        raise SweepFileError(f"cannot write {error.filename}: {error.strerror}") from None
    if is_example:
        console.print(f"{example}: an example; put your training in its place", **PLAIN)
    console.print(
        f"{file}: edit it, then `carbs validate {file}` and `carbs sweep {file}`", **PLAIN
    )


def _quoted(command: str) -> str:
    return yaml.safe_dump(command, width=10_000).removesuffix("...\n").strip()


def _usual(name: str) -> str:
    field = name.rpartition(".")[2]
    return next((space for names, space in _USUAL if re.fullmatch(names, field)), _ANY)


def validate(
    file: Annotated[Path, typer.Argument(help="The sweep file (YAML).")],
    as_json: JsonOption = False,
) -> None:
    """Check a sweep file: every error with its line. Nothing is run or written.

    Exit code 1: something is wrong with it.
    """
    with working("reading the sweep file"):
        from carbs.launchers.cli.run import check_code
        from carbs.launchers.controller.config import load_sweep
        from carbs.launchers.controller.database import database_url

        error: LauncherError | None = None
        warning = ""
        try:
            config = load_sweep(file)
            with console.capture() as printed:
                check_code(config, (str(file.resolve().parent), str(Path.cwd())))
            warning = printed.get().strip()
            database_url(config.storage, config.storage_file)
        except LauncherError as found:
            error = found
    if as_json:
        problems = getattr(error, "problems", ()) or ([error] if error else [])
        said = [
            {
                "line": getattr(problem, "line", None),
                "where": getattr(problem, "where", ""),
                "message": getattr(problem, "message", str(problem)),
            }
            for problem in problems
        ]
        print_json({"file": str(file), "is_valid": error is None, "problems": said})
    elif error is not None:
        console.print(f"error: {error}", **PLAIN)
    else:
        if warning:
            console.print(warning, **PLAIN)
        names = ", ".join(param.name for param in config.parameters)
        console.print(
            f"{file} is fine: {config.max_trials} trials over {names}; executor {config.executor}",
            **PLAIN,
        )
    if error is not None:
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON Schema of sweep files, from which editors complete and explain."""
    from carbs.launchers.controller.schema import sweep_schema

    print(json.dumps(sweep_schema(), indent=1, allow_nan=False))


def add_commands(app: typer.Typer) -> None:
    """All three, under their names."""
    app.command("init")(init)
    app.command("validate")(validate)
    app.command("schema")(schema)
