"""``carbs plan`` and ``carbs fit``: what a sweep, or a table of runs, says of a large run."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from carbs import analysis
from carbs.analysis.planning.budget import GPUS, Failures
from carbs.launchers.cli.terminal import PLAIN, JsonOption, console, print_json, working
from carbs.launchers.errors import SweepStoppedError

if TYPE_CHECKING:
    from carbs.analysis import ComputeLaw, LossLaw, Plan, RunsFit

_DEFAULTS = Failures()


def plan_command(
    folder: Annotated[Path, typer.Argument(help="Of a sweep.")],
    flops: Annotated[float | None, typer.Option(help="Budget in FLOPs of useful work.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Budget in GPU-hours.")] = None,
    money: Annotated[float | None, typer.Option(help="Budget in the unit of --price.")] = None,
    cost: Annotated[float | None, typer.Option(help="Budget in the sweep's unit of cost.")] = None,
    gpu: Annotated[str, typer.Option(help=f"One of {', '.join(GPUS)}.")] = "H100",
    n_gpus: Annotated[int, typer.Option(help="That run at once.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Of the GPU's peak rate.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Of a GPU-hour.")] = None,
    unique_tokens: Annotated[float | None, typer.Option(help="For the epochs.")] = None,
    failures: Annotated[
        float, typer.Option(help="An hour for each 1,000 GPUs; Llama 3's by default.")
    ] = _DEFAULTS.per_hour_per_1000_gpus,
    resume: Annotated[
        float, typer.Option(help="Minutes to resume after a failure; MegaScale's by default.")
    ] = _DEFAULTS.minutes_to_resume,
    checkpoint: Annotated[
        float, typer.Option(help="Minutes between checkpoints.")
    ] = _DEFAULTS.checkpoint_minutes,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="A value that is given: width=1024.")
    ] = None,
    bounds: Annotated[
        list[str] | None, typer.Option("--bound", help="Other bounds: depth=4..32, depth=..32.")
    ] = None,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    job_file: Annotated[
        Path | None, typer.Option(help="Write a sweep file that trains this configuration once.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="The study's database, where the sweep file names one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """From a budget to a configuration, with the loss and the cost to expect, and a ladder."""
    from carbs.launchers.controller.sweep import Sweep

    sweep = Sweep.open(folder, storage)
    try:
        with working("planning"):
            planned = analysis.plan(
                sweep.study,
                cost,
                flops=flops,
                gpu_hours=gpu_hours,
                money=money,
                gpu=gpu,
                n_gpus=n_gpus,
                utilisation=utilisation,
                price_per_gpu_hour=price,
                failures=Failures(failures, resume, checkpoint),
                unique_tokens=unique_tokens,
                bounds=dict(_bound(text) for text in bounds or ()),
                fixed=dict(_value(text) for text in values or ()),
                space=sweep.space,
                direction=sweep.config.direction,
                level=level,
                sweep=sweep.config.model_dump(mode="json"),
            )
    except ValueError as error:
        raise SweepStoppedError(f"no plan from {sweep.folder}: {error}") from None
    if job_file is not None:
        job_file.write_text(planned.job_file(), encoding="utf-8")
    if as_json:
        units = {"output_unit": sweep.config.output_unit, "cost_unit": sweep.config.cost_unit}
        print_json({**_plain(planned), **units})
        return
    _say(planned, sweep.config.output_unit, sweep.config.cost_unit)
    if job_file is not None:
        console.print(f"job file: {job_file}; run it with: carbs sweep {job_file}", **PLAIN)


def _plain(planned: Plan) -> dict[str, Any]:
    """A plan without what only Python can use."""
    return {field.name: getattr(planned, field.name) for field in fields(planned) if field.repr}


def _value(text: str) -> tuple[str, Any]:
    """``width=1024`` as a name and what YAML reads of the value."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"--set {text}: expected a name and a value, such as width=1024")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"--set {text}: {value!r} is no value in YAML") from None
    try:  # YAML takes 3e-4 for a word
        return name, float(read) if isinstance(read, str) else read
    except ValueError:
        return name, read


def _bound(text: str) -> tuple[str, tuple[float | None, float | None]]:
    """``depth=4..32`` as a name and two ends, of which one may be open."""
    name, _, ends = text.partition("=")
    low, dots, high = ends.partition("..")
    try:
        if not (name and dots and (low or high)):
            raise ValueError
        return name, (float(low) if low else None, float(high) if high else None)
    except ValueError:
        raise ValueError(f"--bound {text}: expected such as depth=4..32 or depth=..32") from None


def _say(planned: Plan, output_unit: str, cost_unit: str) -> None:
    from carbs.launchers.cli.progress import format_params

    level = f"{planned.level:.0%}"
    console.print(f"configuration: {format_params(planned.params)}", **PLAIN)
    low, high = planned.output_interval
    console.print(
        f"loss: {planned.output:.4f} [{low:.4f}, {high:.4f}] {output_unit} ({level})", **PLAIN
    )
    low, high = planned.cost_interval
    console.print(
        f"cost: {planned.cost:.4g} [{low:.4g}, {high:.4g}] {cost_unit} ({level}), "
        f"{planned.extrapolation:.3g} times the sweep's dearest run",
        **PLAIN,
    )
    facts = {"parameters": planned.n_params, "tokens": planned.tokens, "epochs": planned.epochs}
    facts["GiB of weights and optimizer"] = planned.memory_gib
    known = [f"{value:.4g} {name}" for name, value in facts.items() if value is not None]
    if known:
        console.print("; ".join(known), **PLAIN)
    if planned.budget is not None:
        budget = planned.budget
        text = f"{budget.flops:.3g} FLOPs; {budget.gpu_hours:.4g} GPU-hours"
        text += f", {budget.hours:.4g} hours, {budget.failures_share:.1%} of it lost to failures"
        if budget.money == budget.money:
            text += f"; {budget.money:.4g} in money"
        console.print(text, **PLAIN)
    for warning in planned.warnings:
        console.print(f"warning: {warning}", **PLAIN)
    table = Table(title="what rests on each number: the loss a step beside it, at the same cost")
    for name in ("", "value", f"optimum ({level})", "step", "lower", "higher"):
        table.add_column(name, justify="right" if name else "left")
    for one in planned.decisions:
        band = "" if one.interval is None else "{:.3g} to {:.3g}".format(*one.interval)
        beside = ("" if x is None else f"{x:+.4f}" for x in (one.lower, one.higher))
        table.add_row(one.name, f"{one.value:.4g}", band, one.step, *beside)
    console.print(table)
    believed = {one.name: one.beforehand for one in planned.decisions if one.beforehand is not None}
    if believed:
        powers = ", ".join(f"{name} cost^{power:.2g}" for name, power in believed.items())
        console.print(f"believed beforehand, by their roles: {powers}", **PLAIN)
    if planned.alternatives:
        table = Table(title="what other ways of planning would run for the same cost")
        for name in ("", "expected loss", level, "configuration"):
            table.add_column(name, justify="left" if name in ("", "configuration") else "right")
        for other in planned.alternatives:
            low, high = other.output_interval
            shown = format_params(other.params)
            table.add_row(other.way, f"{other.output:.4f}", f"{low:.4f} to {high:.4f}", shown)
        console.print(table)
    if not planned.ladder:
        return
    table = Table(title="check runs on the way")
    for name in (f"cost ({cost_unit})", "share", "expected loss", level, "tells"):
        table.add_column(name, justify="right")
    for rung in planned.ladder:
        low, high = rung.output_interval
        table.add_row(
            f"{rung.cost:.4g}",
            f"{rung.share:.1%}",
            f"{rung.output:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{rung.tells:.0%}",
        )
    console.print(table)


def fit_command(
    file: Annotated[Path, typer.Argument(help="CSV, Parquet or JSON lines, one row a run.")],
    loss: Annotated[str | None, typer.Option(help="Column; guessed from its name else.")] = None,
    params: Annotated[str | None, typer.Option(help="Column of the parameters.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Column of the tokens.")] = None,
    unique: Annotated[
        str | None, typer.Option(help="Column of the unique tokens, where they repeat.")
    ] = None,
    compute: Annotated[str | None, typer.Option(help="Column of the compute.")] = None,
    group: Annotated[str | None, typer.Option(help="Column that names a run.")] = None,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="The law of the runs' lower edge.")
    ] = False,
    hyperparameters: Annotated[
        list[str] | None,
        typer.Option("--hyperparameter", help="Column that was varied, not tuned: lr."),
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="Predict the best run with this compute.")
    ] = None,
    unique_tokens: Annotated[
        float | None, typer.Option(help="That there are; what it trains on beyond is repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law to runs that no sweep of ours made."""
    names = ("loss", "n_params", "n_tokens", "unique_tokens", "compute", "group")
    given = dict(zip(names, (loss, params, tokens, unique, compute, group), strict=True))
    try:
        with working("fitting the law"), warnings.catch_warnings():
            warnings.simplefilter("ignore", analysis.UndeterminedLawWarning)  # the law says it
            found = analysis.fit_runs(
                analysis.read_runs(file),
                {k: v for k, v in given.items() if v is not None},
                tuned=not untuned,
                hyperparameters=hyperparameters or (),
            )
        best, warned = _best(found.law, flops, unique_tokens) if flops is not None else ({}, [])
    except (OSError, ValueError) as error:
        raise SweepStoppedError(f"no law from {file}: {error}") from None
    law = found.law
    form = "E + A N^-alpha + B D^-beta" if isinstance(law, analysis.LossLaw) else "E + k C^-g"
    if as_json:
        _print_fit(found, form, flops, best, warned)
        return
    console.print(found.said(), **PLAIN)
    console.print(f"L = {form}, fitted to {law.fitted_to}", **PLAIN)
    table = Table()
    for name in ("coefficient", "estimate", "90% low", "90% high"):
        table.add_column(name, justify="right")
    if law.undetermined:
        table.add_column("what the runs do not tell")
    for name, *numbers, note in law.summary().itertuples(index=False, name=None):
        notes = [note] * bool(law.undetermined)
        table.add_row(name, *(f"{number:.4g}" for number in numbers), *notes)
    console.print(table)
    for doubt in law.doubts:
        console.print(f"warning: {doubt}", **PLAIN)
    if flops is not None:
        is_loss_law = isinstance(law, analysis.LossLaw)  # else the unit may be any
        texts = [
            f"{name} {one['estimate']:.4g} [{one['low']:.4g}, {one['high']:.4g}]"
            for name, one in best.items()
        ]
        at = f"best at {flops:.3g} FLOPs" if is_loss_law else f"at {flops:.3g}"
        console.print(f"{at}: {', '.join(texts)}", **PLAIN)
        for text in warned:
            console.print(f"warning: {text}", **PLAIN)


def _print_fit(
    found: RunsFit, form: str, flops: float | None, best: dict[str, Any], warned: list[str]
) -> None:
    print_json(
        {
            "form": form,
            "columns": dict(found.columns),
            "guessed": found.guessed,
            "left_out": found.n_left_out,
            "fitted_to": found.law.fitted_to,
            "coefficients": {
                name: {"estimate": estimate, "low": low, "high": high, "note": note}
                for name, estimate, low, high, note in found.law.summary().itertuples(
                    index=False, name=None
                )
            },
            "flops": flops,
            "best": best or None,
            "notes": found.notes,
            "warnings": [*found.law.doubts, *warned],
        }
    )


def _best(
    law: ComputeLaw | LossLaw, flops: float, unique_tokens: float | None
) -> tuple[dict[str, Any], list[str]]:
    """What the law expects of the best run with that much compute, by quantity; its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(law, analysis.LossLaw):
            best = law.compute_optimal(flops, unique_tokens=unique_tokens)
            shown: dict[str, tuple[Any, Any]] = {
                "loss": (best.loss, best.loss_interval),
                "parameters": (best.n_params, best.n_params_interval),
                "tokens": (best.n_tokens, best.n_tokens_interval),
            }
        elif unique_tokens is not None:
            raise ValueError("a law of the compute alone knows of no tokens that are repeated")
        else:
            shown = {"loss": (law.predict(flops), law.interval(flops))}
    found = {
        name: {"estimate": float(estimate), "low": float(low), "high": float(high)}
        for name, (estimate, (low, high)) in shown.items()
    }
    return found, list(dict.fromkeys(str(warning.message) for warning in caught))


def add_commands(app: typer.Typer) -> None:
    """Both, under their names."""
    app.command("plan")(plan_command)
    app.command("fit")(fit_command)
