"""The sweep file: YAML, checked against one schema; an unknown key is an error.

name: my-sweep
function: my_module:train            # importable, or a file beside the sweep file; or in its place
# command: python train.py --width {width} {overrides}
parameters:
  width: {space: log, min: 16, max: 512, is_integer: true, rounding_factor: 16, search_center: 64}
  mix: {space: mixture, components: [code, prose], search_center: {code: 0.5, prose: 0.5}}
  optimizer: {space: choice, choices: [adamw, sgd], search_center: adamw}
  momentum: {space: logit, search_center: 0.9, when: {optimizer: sgd}}
constraints: ["width <= 256 or mix.code > 0.1"]
warm_start: [{folder: earlier-sweep, defaults: {optimizer: sgd}}]
executor: slurm
executor_options: {partition: gpu, gpus_per_node: 1, timeout_min: 240}
tiers:
  large: {when: "width >= 256", options: {nodes: 2}}
max_trials: 60
max_cost: 15
budget: 300
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from carbs.constraints import Condition
from carbs.earlier import EarlierSweep
from carbs.early_stopping import MIN_PROGRESS, MISS_SHARE
from carbs.launchers.cluster.options import check_options
from carbs.launchers.controller.outcomes import Pattern
from carbs.launchers.controller.problems import Problem, find_problems
from carbs.launchers.controller.yaml_lines import Place, read_yaml
from carbs.launchers.errors import SweepFileError
from carbs.launchers.job.command import Command
from carbs.launchers.job.files import FunctionName
from carbs.launchers.loggers.config import LogConfig
from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, MixtureSpace, NumericSpace, Params, Space


class CheckConfig(BaseModel):
    """The check run: predicted from the sweep, then trained.

    Attributes:
        cost_factor: its cost, as a multiple of the sweep's dearest run.
        level: of its prediction intervals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cost_factor: float = Field(default=8.0, ge=1, allow_inf_nan=False)
    level: float = Field(default=0.9, gt=0, lt=1)


class WarmStartConfig(BaseModel):
    """Another sweep to learn from, by its folder, or by its study and the database that holds it.

    It is read once, when the new sweep begins.

    Attributes:
        folder: of a sweep, where its study lies in it; relative to the working directory.
        storage, study: a database URL, and the study's name.
        defaults: what it used of parameters that it did not search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str | None = None
    storage: str | None = None
    study: str | None = None
    defaults: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_place(self) -> WarmStartConfig:
        has = (self.folder is not None, self.storage is not None, self.study is not None)
        if has not in ((True, False, False), (False, True, True)):
            raise ValueError("give either the folder of a sweep, or both storage and study")
        return self


class EarlyStoppingConfig(BaseModel):
    """Which runs are stopped early (see :mod:`carbs.early_stopping`).

    Attributes:
        miss_share: of the runs that would be on the Pareto front, so many may be stopped.
        min_progress: no run is stopped before this share of it is done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    miss_share: float = Field(default=MISS_SHARE, gt=0, lt=1)
    min_progress: float = Field(default=MIN_PROGRESS, gt=0, lt=1)


class TierConfig(BaseModel):
    """Resources for some of the trials: those to which all that is given here applies.

    Attributes:
        when: an expression over the parameters, as a constraint is one.
        min_cost: predicted cost from which on it applies, in the sweep's unit. A trial without a
            prediction, such as the first, counts as cheap.
        options: over the sweep's ``executor_options``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: str | None = None
    min_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    options: dict[str, Any] = {}


class SweepConfig(BaseModel):
    """What a sweep file says.

    Attributes:
        name: of the study, and of its folder in ``sweeps/``.
        function: ``module:function``, called as ``function(params, job)`` (see
            ``carbs.launchers.job.protocol``).
        command: in place of a function; a line or a list of words with placeholders (see
            ``carbs.launchers.job.command``), run in the sweep file's folder.
        shell: whether bash runs the command.
        parameters: what is searched, by name; each with its space and its ``search_center``, and
            ``when`` it exists. ``fixed: VALUE`` searches one no longer.
        was: the values that earlier runs of this sweep used of parameters that were added since; in
            the file, ``was: VALUE`` of the parameter.
        constraints: expressions over the parameters that every trial meets.
        cost: an expression over the parameters that costs are known to be proportional to, or
            nearly, for plans: ``6 * n_params * tokens``.
        warm_start: other sweeps to learn from, over these parameters or others.
        settings: handed to the function as they are.
        direction: whether a low or a high output is good.
        executor: where jobs run: ``local`` processes, ``slurm``, or ``debug`` (in the controller).
        executor_options: submitit's parameters, such as ``timeout_min`` or ``partition``.
        tiers: other options for some trials, by name; the first that applies to a trial counts.
        batch_size: trials that are suggested at a time; on Slurm, one job array.
        max_in_flight: jobs at a time.
        max_cost_in_flight: predicted cost of what runs at a time.
        max_trials: trials in all.
        max_cost: of one run, in the function's unit of cost (seconds unless it says otherwise).
        budget: of all runs together, in the same unit; None for no limit.
        output_unit, cost_unit: for tables and figures.
        seed: of the search and of every job.
        storage: a database URL; None for an SQLite file in the sweep's folder. ``${NAME}`` stands
            for an environment variable: passwords do not belong into files that others read.
        storage_file: a file that holds the URL, in place of ``storage``.
        machine_retries: how often a trial is tried again in a row because of a machine.
        outcomes: what the words in a log or an exception mean, before the built-in table.
        exclude_node_for_s: how long no job is sent to a node that was found broken.
        health_check: whether a job first checks its node; by default on Slurm.
        max_slowdown: a node that is so many times slower than the sweep's others is broken; None
            for no comparison.
        poll_s: between two looks at the queue.
        grace_s: how long a job must have been gone without a report before it counts as lost.
        check: the run that checks the prediction at the end; None for none.
        early_stopping: of runs that report their progress; None for none.
        log: where each trial is written to as well (see :mod:`carbs.launchers.loggers.config`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    name: str = Field(min_length=1)
    function: FunctionName | None = None
    command: str | list[str] | None = None
    shell: bool = False
    parameters: list[Param] = Field(min_length=1)
    was: dict[str, Any] = {}
    constraints: list[str] = []
    cost: str | None = None
    warm_start: list[WarmStartConfig] = []
    settings: dict[str, Any] = {}
    direction: Literal["minimize", "maximize"] = "minimize"
    executor: Literal["local", "slurm", "debug"] = "local"
    executor_options: dict[str, Any] = {}
    tiers: dict[str, TierConfig] = {}
    batch_size: int = Field(default=1, ge=1)
    max_in_flight: int = Field(default=2, ge=1)
    max_cost_in_flight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_trials: int = Field(default=60, ge=1)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    output_unit: str = ""
    cost_unit: str = "s"
    seed: int = 0
    storage: str | None = None
    storage_file: str | None = None
    machine_retries: int = Field(default=3, ge=0)
    outcomes: list[Pattern] = []
    exclude_node_for_s: float = Field(default=3600, gt=0)
    health_check: bool | None = None
    max_slowdown: float | None = Field(default=1.5, gt=1, allow_inf_nan=False)
    poll_s: float = Field(default=2, gt=0)
    grace_s: float = Field(default=15, ge=0)
    check: CheckConfig | None = None
    early_stopping: EarlyStoppingConfig | None = None
    log: list[LogConfig] = []

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, name: str) -> str:
        parts = name.split("/")
        if {"", ".", ".."} & set(parts) or not name.isprintable() or "\\" in name:
            raise ValueError(
                f"{name!r} cannot name a folder below sweeps/: use letters, digits and dashes"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _change_of_parameters(cls, content: Any) -> Any:
        """``fixed`` and ``was`` stand in the file with their parameter."""
        if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
            return content
        parameters, constraints = {}, []
        was = dict(content.get("was") or {})
        for name, fields in content["parameters"].items():
            if isinstance(fields, dict):
                fields = dict(fields)
                if "was" in fields:
                    was[name] = fields.pop("was")
                if "fixed" in fields:
                    fields, constraint = _fixed(str(name), fields)
                    constraints += [constraint] if constraint is not None else []
            parameters[name] = fields
        content = {**content, "parameters": parameters, "was": was}
        if constraints:
            content["constraints"] = [*(content.get("constraints") or []), *constraints]
        return content

    @field_validator("parameters", mode="before")
    @classmethod
    def _parameters_by_name(cls, parameters: Any) -> Any:
        if not isinstance(parameters, dict):
            return parameters
        return [_parameter(str(name), fields) for name, fields in parameters.items()]

    @model_validator(mode="after")
    def _check_space(self) -> SweepConfig:
        space = SearchSpace(self.parameters, self.constraints, self.cost)
        for number, source in enumerate(self.warm_start):
            try:
                EarlierSweep(defaults=source.defaults).seen_from(space, "minimize")
            except ValueError as error:
                raise ValueError(f"warm_start.{number}: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_was(self) -> SweepConfig:
        params = {param.name: param for param in self.parameters}
        for name, value in self.was.items():
            if name not in params:
                raise ValueError(f"was names {name!r}, which is none of {sorted(params)}")
            try:
                EarlierSweep(defaults={name: value}).seen_from(
                    SearchSpace(self.parameters), "minimize"
                )
            except ValueError as error:
                raise ValueError(f"parameters.{name}.was: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_command(self) -> SweepConfig:
        if (self.function is None) == (self.command is None):
            raise ValueError(
                "missing key 'function': give function: module:function, or command: a line "
                "such as python train.py {overrides}"
                if self.function is None
                else "give function or command, not both"
            )
        if self.command is None:
            if self.shell:
                raise ValueError("shell: true belongs to a command, and there is none")
            return self
        if self.settings:
            raise ValueError("settings are for a function: write them into the command")
        try:
            command = self.command_line
            assert command is not None
            command.check(
                {
                    param.name: param.space.components
                    if isinstance(param.space, MixtureSpace)
                    else ()
                    for param in self.parameters
                }
            )
        except ValueError as error:
            raise ValueError(f"command: {error}") from None
        return self

    @property
    def command_line(self) -> Command | None:
        """The command with its placeholders; None where there is a function."""
        if self.command is None:
            return None
        return Command.of(self.command, is_shell=self.shell, measures_cost=self.is_cost_seconds)

    @property
    def is_cost_seconds(self) -> bool:
        """Whether the unit of cost is the second."""
        return self.cost_unit in ("s", "seconds", "second")

    @model_validator(mode="after")
    def _check_tiers(self) -> SweepConfig:
        check_options(self.executor_options, "executor_options")
        centers = {param.name: param.search_center for param in self.parameters}
        for name, tier in self.tiers.items():
            check_options({**self.executor_options, **tier.options}, f"tiers.{name}.options")
            if tier.when is not None:
                try:
                    Condition(tier.when, centers)
                except ValueError as error:
                    raise ValueError(f"tiers.{name}.when: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_storage(self) -> SweepConfig:
        if self.storage is not None and self.storage_file is not None:
            raise ValueError("give storage or storage_file, not both")
        return self

    def tier(self, params: Params, predicted_cost: float | None) -> str | None:
        """The name of the first tier that applies to a configuration; None for none."""
        centers = {param.name: param.search_center for param in self.parameters}
        for name, tier in self.tiers.items():
            if tier.min_cost is not None and (predicted_cost or 0.0) < tier.min_cost:
                continue
            if tier.when is None or _holds(tier.when, params, centers):
                return name
        return None

    def options(self, tier: str | None) -> dict[str, Any]:
        """The executor's options for jobs of a tier."""
        return self.executor_options | (self.tiers[tier].options if tier in self.tiers else {})

    @model_validator(mode="after")
    def _check_budget(self) -> SweepConfig:
        if self.budget is not None and self.max_cost is not None and self.budget < self.max_cost:
            raise ValueError(
                f"budget {self.budget:g} is smaller than one run may cost (max_cost "
                f"{self.max_cost:g}): raise budget or lower max_cost"
            )
        return self


def _holds(expression: str, params: Params, examples: Params) -> bool:
    """Whether it names only parameters that are active, and is true of them."""
    condition = Condition(expression, examples)
    return condition.names <= set(params) and condition.holds(params)


def _parameter(name: str, fields: Any) -> dict[str, Any]:
    if isinstance(fields, Param):
        return {**dict(fields), "name": name}
    if not isinstance(fields, dict) or "space" not in fields:
        raise ValueError(f"parameter {name!r} needs a space: linear, log, logit, choice or mixture")
    if "search_center" not in fields:
        raise ValueError(
            f"parameter {name!r} has no search_center: give a good, cheap value to start from"
        )
    own = {key: fields[key] for key in ("search_center", "when", "role") if key in fields}
    space = {key: value for key, value in fields.items() if key not in ("space", *own)}
    return {"name": name, "space": {"kind": fields["space"], **space}, **own}


def _fixed(name: str, fields: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A parameter of one value: it stays in the space, so that earlier runs keep theirs.

    Returns:
        The fields with the narrowest bounds that a space may have and the value as the centre, and
        the constraint that is needed besides.
    """
    value = fields["fixed"]
    fields = {key: found for key, found in fields.items() if key != "fixed"}
    try:
        given = _parameter(name, {**fields, "search_center": value})["space"]
        space: Any = TypeAdapter(Space).validate_python(given)
        value = space.check(value)
    except ValidationError:
        return fields, None  # what is wrong with it is said when all is checked
    except ValueError as error:
        raise ValueError(f"parameters.{name}.fixed: {error}") from None
    fields["search_center"] = value
    if isinstance(space, MixtureSpace):
        weights: dict[str, float] = value
        fields["min"] = {part: max(0.0, weight - 1e-9) for part, weight in weights.items()}
        fields["max"] = {part: min(1.0, weight + 1e-9) for part, weight in weights.items()}
        return fields, None
    if isinstance(space, NumericSpace):
        fields["scale"] = space.scale  # which may have followed from the bounds
        fields["min"] = value
        if not space.is_integer:
            fields["max"] = math.nextafter(value, math.inf)
            return fields, None
        fields["max"] = value + space.rounding_factor
    assert isinstance(space, (ChoiceSpace, NumericSpace))
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"parameters.{name}.fixed: only a name without special characters may be")
    return fields, f"{name} == {value!r}"


def load_sweep(path: Path, **overrides: Any) -> SweepConfig:
    """Read a sweep file.

    Args:
        path: of the YAML file.
        overrides: keys of the file to replace; None leaves the file's value.

    Raises:
        SweepFileError: names every key at fault, what was expected, and what may have been meant.
    """
    try:
        document = read_yaml(path.read_text())
    except OSError as error:
        raise SweepFileError(f"cannot read the sweep file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepFileError(f"{path} is no YAML file: {error}") from None
    content = document.content
    if document.doubles:
        problems = [
            Problem(f"{where} stands in line {first} already: take one of them out", where, again)
            for place, first, again in document.doubles
            for where in [".".join(map(str, place))]
        ]
        raise SweepFileError(_told(path, problems), problems)
    if not isinstance(content, dict):
        raise SweepFileError(f"{path} must hold a mapping of keys, such as 'name: my-sweep'")
    content |= {key: value for key, value in overrides.items() if value is not None}
    try:
        config = SweepConfig.model_validate(content)
    except ValidationError:
        problems = find_problems(
            SweepConfig,
            content,
            document,
            _problem,
            instead={"name": "unnamed", "function": "module:function"},
            stands_for={"command": "function"},
            names="parameters",
        )
        raise SweepFileError(_told(path, problems), problems) from None
    for missing in filter(None, (logger.missing() for logger in config.log)):
        raise SweepFileError(f"{path}: {missing}")
    return config


def _told(path: Path, problems: Sequence[Problem]) -> str:
    return "\n".join([f"{path}:", *(f"  {problem}" for problem in problems)])


def _problem(detail: Any, content: Mapping[str, Any]) -> tuple[Place, str]:
    """One error of pydantic's: its place in the file; and where, what, and the remedy in words."""
    place = _place(detail, content)
    return place, _said(detail, place)


def _place(detail: Any, content: Mapping[str, Any]) -> Place:
    place = list(detail["loc"])
    if len(place) > 1 and place[0] == "parameters" and isinstance(place[1], int):
        place[1] = list(content["parameters"])[place[1]]
        # In the file a space's fields stand beside its name: parameters.x.max, not .space.log.max.
        if len(place) > 4 and place[2] == "space":
            del place[2:4]
    return tuple(place)


def _said(detail: Any, place: Place) -> str:
    where = ".".join(str(part) for part in place)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden" and len(place) == 1:
        known = list(SweepConfig.model_fields)
        close = difflib.get_close_matches(str(place[0]), known, n=1)
        meant = f", did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
        return f"unknown key {where!r}{meant}"
    if detail["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    if detail["type"] == "union_tag_invalid":
        context = detail["ctx"]
        return f"{where}: unknown space {context['tag']!r}, expected {context['expected_tags']}"
    if detail["type"] == "missing":
        return f"missing key {where!r}"
    return f"{where}: {message}" if where else message
