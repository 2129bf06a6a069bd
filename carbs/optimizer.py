"""CARBS: suggest, observe, forget.

The optimizer is a function of its records: :func:`propose` maps (space, records, seed) to the next
suggestions, and :class:`CARBS` is no more than the records and that call. One that was saved and
loaded goes on as the unsaved one would.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from carbs.acquisition import FrontImprovement, TrustBox, keys, maximize
from carbs.allowance import Allowance, check_limit
from carbs.constraints import Constraint
from carbs.display import shown, table
from carbs.earlier import EarlierRuns, EarlierSweep
from carbs.from_imbue import (
    CONFIG_KEYWORDS,
    OBSERVE_KEYWORDS,
    OPTIMIZER,
    SUGGEST_KEYWORDS,
    Explaining,
    no_keywords_of_imbue,
    where,
)
from carbs.pareto import hypervolume, pareto_front
from carbs.records import Direction, Failure, Observation, Suggestion, as_number, as_whole_number
from carbs.search_space import Param, SearchSpace
from carbs.spaces import FloatArray, Params
from carbs.surrogate import Surrogate, fit_surrogate
from carbs.threads import on_one_thread

logger = logging.getLogger(__name__)


# Before a model of every dimension makes sense: the centre and a few steps around it.
_N_INITIAL = 4
_INITIAL_RADIUS = 0.2
_N_INITIAL_TRIES = 64
# A batch asked before anything is known reaches further, after so many twice as far.
_N_WIDENING = 32
# How far the trust box goes beyond what has done well, in scales, and in its extent.
_TRUST_MARGIN = 1.0
_TRUST_GROWTH = 0.25
# A search whose front has grown by less than this share over so many runs (or as many as there are
# dimensions) is stuck: every other suggestion counts what is not known so many times as much.
_STUCK_RUNS, _STUCK_GROWTH, _BOLDNESS = 10, 0.002, 3.0
# Of so many runs of different cost a plan is made.
_N_FOR_A_PLAN = 16
_QUANTILES = (0.05, 0.5, 0.95)
_MOST_ROWS = 20  # of the front, in a notebook


@on_one_thread
def propose(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure],
    pending: Sequence[Params],
    ids: Sequence[str],
    *,
    earlier: Sequence[EarlierRuns] = (),
    direction: Direction = "minimize",
    max_cost: float | None = None,
    allowance: Allowance = Allowance(),  # noqa: B008  # it is frozen
    cost_exponent: float | None = None,
    seed: int = 0,
) -> list[Suggestion]:
    """The next suggestions, one for each id, each aware of the others.

    Args:
        space: of the configurations.
        observations, failures, pending: all that is known.
        earlier: other sweeps, which teach the surrogate and may say where to begin.
        ids: of the suggestions to make. Together with ``seed`` they seed the random generator.
        direction: whether a low or a high output is good.
        max_cost: no run should cost more; None for no limit.
        allowance: what all runs together may take.
        cost_exponent: how much cost counts, from 0 (only the number of trials matters) to 1 (only
            their total cost does). By default as the allowance has it.
        seed: any integer.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    if direction == "maximize":
        observations = [o.model_copy(update={"output": -o.output}) for o in observations]
    earlier_Z = np.concatenate([np.empty((0, space.n_dims)), *(runs.Z for runs in earlier)])
    surrogate = None
    if len(observations) + len(earlier_Z) > 1:
        surrogate = fit_surrogate(space, observations, failures, earlier)
    seen_Z = space.encode_all([observation.params for observation in observations])
    known_Z = np.concatenate([seen_Z, space.encode_all(pending)])
    failed_Z = space.encode_all([failure.params for failure in failures])
    n_before = len(known_Z)
    is_stuck = _is_stuck(observations, max_cost, max(_STUCK_RUNS, space.n_dims))
    costs = [o.cost if o.spent is None else o.spent for o in observations]
    spent = math.fsum([*costs, *(failure.cost or 0.0 for failure in failures)])
    for id in ids:
        rng = np.random.default_rng([abs(seed), seed < 0, *id.encode()])
        n_known = len(known_Z) + len(failures)
        if n_known == 0:
            z = space.center
        elif surrogate is None or n_known + len(earlier_Z) < _N_INITIAL:
            # Around the centre, the closer the more has failed there. From one that failed itself
            # ever further away, or around a run that did not fail.
            widening = 1 + min(max(n_known - _N_INITIAL, 0) / _N_WIDENING, 1.0)
            origin, radius = space.center, widening * _INITIAL_RADIUS
            if keys(origin[None, :])[0] not in keys(failed_Z):
                radius /= 1 + len(failures)
            elif len(seen_Z):
                origin = seen_Z[0]
            else:
                radius *= 1 + len(failures) / _N_INITIAL
            z = _step(space, origin, radius, np.concatenate([known_Z, failed_Z]), rng)
        else:
            pending_Z = known_Z[len(seen_Z) :]
            drawn = surrogate.drawn(rng).condition(pending_Z)
            used = spent + float(np.exp(surrogate.log_cost(pending_Z)[0]).sum())
            cheapest = min((o.cost for o in observations), default=None)
            limit = allowance.most(max_cost, used, cheapest)
            is_bold = is_stuck and n_known % 2 == 0 and not allowance.is_ending(n_known)
            exponent = cost_exponent
            if exponent is None:
                first = observations[0].cost if observations else None
                exponent = allowance.cost_exponent(n_known, used, first, max_cost)
            z = _search(
                space,
                drawn,
                known_Z,
                len(seen_Z),
                failed_Z,
                earlier_Z,
                limit,
                exponent,
                _BOLDNESS if is_bold else 1.0,
                rng,
            )
            cost = float(np.exp(surrogate.log_cost(z[None])[0][0]))
            if (
                max_cost is not None
                and not earlier
                and allowance.is_last_at(max_cost, n_known, used, cost)
            ):
                tried_Z = np.concatenate([known_Z, failed_Z])
                z = _planned(space, observations, failures, surrogate, max_cost, tried_Z, z)
        known_Z = np.concatenate([known_Z, z[None, :]])
    return _suggestions(space, ids, known_Z[n_before:], surrogate, sign)


def _step(
    space: SearchSpace,
    origin: FloatArray,
    radius: float,
    tried_Z: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """A random step from the origin to where nothing was tried.

    It gets shorter while the constraints forbid it, and longer while it leads to what was tried.
    Where none of many is both allowed and new, one that is allowed, and at last the centre.
    """
    tried, repeated = set(keys(tried_Z)), space.center
    for _ in range(_N_INITIAL_TRIES):
        Z = space.snap(origin + radius * rng.standard_normal((1, space.n_dims)))
        if not space.allows(space.decode(Z[0])):
            radius *= 0.95
        elif keys(Z)[0] in tried:
            repeated = Z[0]
            radius *= 1.2
        else:
            return np.asarray(Z[0])
    return np.asarray(repeated)


def _is_stuck(observations: Sequence[Observation], max_cost: float | None, n_runs: int) -> bool:
    """Whether the last runs have hardly added to the area of the front.

    What is predicted surely and comes out so adds a corner to a front of steps, and is followed by
    the same again, while better places that the surrogate thinks little of are never looked at.
    """
    if len(observations) < 2 * n_runs:
        return False
    log_costs = np.log([observation.cost for observation in observations])
    outputs = np.array([observation.output for observation in observations])
    end = float(log_costs.max()) + 1 if max_cost is None else math.log(max_cost)
    area = hypervolume(log_costs, outputs, end, outputs[0])
    before = hypervolume(log_costs[:-n_runs], outputs[:-n_runs], end, outputs[0])
    return area - before < _STUCK_GROWTH * area


def _search(
    space: SearchSpace,
    surrogate: Surrogate,
    known_Z: FloatArray,
    n_seen: int,
    failed_Z: FloatArray,
    earlier_Z: FloatArray,
    max_cost: float | None,
    cost_exponent: float,
    boldness: float,
    rng: np.random.Generator,
) -> FloatArray:
    pending = slice(n_seen, len(known_Z))
    tried_Z = np.concatenate([known_Z, failed_Z])
    if not len(known_Z):  # all has failed so far
        known_Z = space.center[None, :]
    log_costs, _ = surrogate.log_cost(known_Z)
    outputs, _ = surrogate.warped_output(known_Z)
    score = FrontImprovement.of(
        surrogate, log_costs, outputs, space.center, max_cost, cost_exponent, boldness
    )
    if len(earlier_Z) and len(known_Z) < _N_INITIAL:
        # Instead of random steps around the centre: around what was good in earlier sweeps.
        known_Z = np.concatenate([known_Z, space.snap(earlier_Z)])
        log_costs, _ = surrogate.log_cost(known_Z)
        outputs, _ = surrogate.warped_output(known_Z)
    front = pareto_front(log_costs, outputs)
    parents = known_Z[front]
    is_good = outputs < score.reference_output
    if score.is_center_beyond_cap:  # it does not tell good from bad
        is_good = np.isin(np.arange(len(known_Z)), front)
    # Pending points, though hoped to be good, do not widen it: the trend would run away with them.
    is_good[pending] = False
    good_Z = np.concatenate([space.center[None, :], known_Z[is_good]])
    box = TrustBox.around(space, good_Z, _TRUST_MARGIN, _TRUST_GROWTH)
    return maximize(score, space, parents, box, tried_Z, rng)


def _planned(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure],
    surrogate: Surrogate,
    max_cost: float,
    tried_Z: FloatArray,
    sought: FloatArray,
) -> FloatArray:
    """What a plan for the cap would run; what was sought of too few runs, or if it was tried.

    A search looks where the most may be gained. The last run is for what all others have taught.
    """
    # Of the layer above, and the search's only use of it.
    from carbs.analysis.planning.choice import recommended

    if len({o.cost for o in observations}) < _N_FOR_A_PLAN:
        return sought
    cost = max_cost * math.exp(-surrogate.cost_noise())
    try:
        with np.errstate(all="ignore"):
            z = recommended(space, observations, failures, cost)
    except (ValueError, np.linalg.LinAlgError) as error:
        logger.warning("no plan is made of these runs, and the search goes on: %s", error)
        return sought
    is_new = keys(z[None, :])[0] not in keys(tried_Z)
    return z if is_new and space.allows(space.decode(z)) else sought


def _suggestions(
    space: SearchSpace,
    ids: Sequence[str],
    Z: FloatArray,
    surrogate: Surrogate | None,
    sign: float,
) -> list[Suggestion]:
    params = [space.decode(z) for z in Z]
    if surrogate is None:
        return [Suggestion(id=id, params=p) for id, p in zip(ids, params, strict=True)]
    outputs = np.sort(sign * surrogate.output_quantiles(Z, _QUANTILES), axis=1).tolist()
    costs = surrogate.cost_quantiles(Z, _QUANTILES).tolist()
    odds = surrogate.success_probability(Z).tolist()
    return [
        Suggestion(
            id=id,
            params=params[i],
            predicted_output=outputs[i][1],
            predicted_output_interval=(outputs[i][0], outputs[i][2]),
            predicted_cost=costs[i][1],
            predicted_cost_interval=(costs[i][0], costs[i][2]),
            success_probability=odds[i],
        )
        for i, id in enumerate(ids)
    ]


class _State(BaseModel):
    """The JSON of a saved optimizer."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    version: Literal[1] = 1
    params: list[Param]
    # Of a function, its name.
    constraints: list[str | dict[Literal["function"], str]] = []
    direction: Direction
    max_cost: float | None = Field(default=None, gt=0)
    n_trials: int | None = Field(default=None, gt=0)
    budget: float | None = Field(default=None, gt=0)
    seed: int
    n_suggested: int = 0
    observations: list[Observation] = []
    failures: list[Failure] = []
    pending: list[Suggestion] = []
    earlier: list[EarlierSweep] = []


def _checked_limits(
    max_cost: float | None, n_trials: int | None, budget: float | None
) -> dict[str, Any]:
    """By their names, or ``ValueError``."""
    check_limit("max_cost", max_cost)
    Allowance(n_trials, budget)
    return {
        "max_cost": None if max_cost is None else float(max_cost),
        "n_trials": None if n_trials is None else int(n_trials),
        "budget": None if budget is None else float(budget),
    }


def seen_from(
    space: SearchSpace, earlier: Sequence[EarlierSweep], direction: Direction
) -> list[EarlierRuns]:
    """Earlier sweeps in a new space; what the space cannot express is left out, with a warning.

    Raises:
        ValueError: a sweep sought the other direction, or its defaults do not fit the space.
    """
    seen = [sweep.seen_from(space, direction) for sweep in earlier]
    for number, runs in enumerate(seen):
        for reason, count in runs.left_out.items():
            logger.warning("earlier sweep %d: %d runs left out: %s", number, count, reason)
    return [runs for runs in seen if len(runs.Z)]


class CARBS(metaclass=Explaining):
    """A cost-aware search along the Pareto front of cost against output.

    Args:
        params: what is searched. The first suggestion is made of their centres.
        constraints: what every suggestion meets: expressions over the parameters, or functions of
            a configuration (see :mod:`carbs.constraints`).
        direction: whether a low or a high output is good.
        max_cost: of one run; a suggestion above it is avoided. None for no limit.
        n_trials, budget: how many runs there will be, and what all of them together may cost, as
            far as that is known: the search uses up what there is. It goes on beyond them if asked.
            The last that may cost ``max_cost`` is what a plan for it would be.
        earlier: other sweeps to learn from, over this space or another (see :mod:`carbs.earlier`).
        seed: same records and seed, same suggestion.

    Raises:
        ValueError: no parameters, names that occur twice, constraints that are none or that the
            centre violates, a limit that is not positive, a seed that is no whole number, or an
            earlier sweep that does not fit.
    """

    @no_keywords_of_imbue(CONFIG_KEYWORDS)
    def __init__(
        self,
        params: Sequence[Param],
        *,
        constraints: Iterable[Constraint] = (),
        direction: Direction = "minimize",
        max_cost: float | None = None,
        n_trials: int | None = None,
        budget: float | None = None,
        earlier: Sequence[EarlierSweep] = (),
        seed: int = 0,
    ) -> None:
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"direction is {direction!r}, expected 'minimize' or 'maximize'")
        limits = _checked_limits(max_cost, n_trials, budget)
        self.space = SearchSpace(params, constraints)
        self._state = _State(
            params=list(self.space.params),
            constraints=[constraint.saved for constraint in self.space.constraints],
            direction=direction,
            **limits,
            earlier=list(earlier),
            seed=as_whole_number("seed", seed),
        )
        self._earlier = seen_from(self.space, earlier, direction)

    @property
    def direction(self) -> Direction:
        """Whether a low or a high output is good."""
        return self._state.direction

    @property
    def observations(self) -> tuple[Observation, ...]:
        return tuple(self._state.observations)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(self._state.failures)

    @property
    def pending(self) -> tuple[Suggestion, ...]:
        """Suggestions neither observed, failed nor forgotten."""
        return tuple(self._state.pending)

    @overload
    def suggest(self) -> Suggestion: ...
    @overload
    def suggest(self, n: int) -> list[Suggestion]: ...
    @no_keywords_of_imbue(SUGGEST_KEYWORDS)
    def suggest(self, n: int | None = None) -> Suggestion | list[Suggestion]:
        """What to run next: one suggestion, or a list of ``n`` that know of each other.

        They stay pending until they are observed, failed or forgotten.
        """
        count = 1 if n is None else n
        if count < 1:
            raise ValueError(f"suggest({n}): expected at least 1")
        state = self._state
        first = state.n_suggested
        suggestions = propose(
            self.space,
            state.observations,
            state.failures,
            [suggestion.params for suggestion in state.pending],
            [str(first + i) for i in range(count)],
            earlier=self._earlier,
            direction=state.direction,
            max_cost=state.max_cost,
            allowance=Allowance(state.n_trials, state.budget),
            seed=state.seed,
        )
        state.n_suggested += count
        state.pending.extend(suggestions)
        return suggestions[0] if n is None else suggestions

    @no_keywords_of_imbue(OBSERVE_KEYWORDS)
    def observe(
        self, suggestion: Suggestion | Mapping[str, Any], *, output: float, cost: float
    ) -> None:
        """Tell the measured output and cost of a suggestion, or of any configuration.

        A configuration by itself answers the first pending suggestion that is equal, if there is.
        Both may be of any kind that ``float()`` takes: NumPy's numbers, tensors of one element,
        ``Decimal``, a string that spells a number. An output that is NaN or infinite is recorded as
        a failure. A suggestion may be observed more than once: repeats teach the noise.

        Raises:
            ValueError: the configuration is not in the space, one of them is no number, or the cost
                not positive and finite.
        """
        params, id = self._identify(suggestion)
        output, cost = as_number("output", output), as_number("cost", cost)
        if not (np.isfinite(cost) and cost > 0):
            raise ValueError(f"cost is {cost}, expected a positive, finite number")
        if np.isfinite(output):
            self._state.observations.append(
                Observation(params=params, output=output, cost=cost, id=id)
            )
            self._settle(id)
        else:
            self.observe_failure(suggestion, reason=f"output is {output}", cost=cost)

    def observe_stopped(
        self,
        suggestion: Suggestion | Mapping[str, Any],
        *,
        output: float,
        output_deviation: float,
        cost: float,
        spent: float | None = None,
    ) -> None:
        """Tell a forecast of a run that was stopped early (see :mod:`carbs.early_stopping`).

        Args:
            output: the median forecast of the run's end.
            output_deviation: standard deviation of that forecast.
            cost: that the full run would have had.
            spent: what it really cost, where known.

        Raises:
            ValueError: the configuration is not in the space, the deviation or the cost not
                positive, or a number not finite.
        """
        params, id = self._identify(suggestion)
        output, cost = as_number("output", output), as_number("cost", cost)
        output_deviation = as_number("output_deviation", output_deviation)
        spent = None if spent is None else as_number("spent", spent)
        if not output_deviation > 0:
            raise ValueError(
                f"output_deviation is {output_deviation}, expected a positive number: "
                "what was measured is for observe()"
            )
        self._state.observations.append(
            Observation(
                params=params,
                output=output,
                cost=cost,
                id=id,
                output_deviation=output_deviation,
                spent=spent,
            )
        )
        self._settle(id)

    def observe_failure(
        self,
        suggestion: Suggestion | Mapping[str, Any],
        *,
        reason: str | Exception,
        cost: float | None = None,
    ) -> None:
        """Tell that a configuration cannot be trained. It lowers the success probability around it.

        Args:
            reason: in a few words, or the exception.
            cost: spent before it failed, where known.

        Raises:
            ValueError: the configuration is not in the space, the reason no text, or the cost
                negative or not finite.
        """
        params, id = self._identify(suggestion)
        if isinstance(reason, Exception):
            reason = f"{type(reason).__name__}: {reason}"
        if not isinstance(reason, str):
            raise ValueError(f"reason is {reason!r}, expected text or an exception")
        cost = None if cost is None else as_number("cost", cost)
        if cost is not None and not (np.isfinite(cost) and cost >= 0):
            raise ValueError(f"cost is {cost}, expected a finite number, at least 0, or None")
        self._state.failures.append(Failure(params=params, reason=reason, cost=cost, id=id))
        self._settle(id)

    def forget(self, suggestion: Suggestion | Mapping[str, Any]) -> None:
        """Drop a pending suggestion: the machine's fault, neither a result nor a failure.

        Raises:
            ValueError: the suggestion is not pending.
        """
        if not isinstance(suggestion, Suggestion):
            params, id = self._identify(suggestion)
            if id is None:
                raise ValueError(f"no pending suggestion is {params}, so none can be forgotten")
        elif (id := suggestion.id) not in {pending.id for pending in self._state.pending}:
            raise ValueError(f"suggestion {id!r} is not pending, so cannot be forgotten")
        self._settle(id)

    def pareto_front(self) -> list[Observation]:
        """Measurements that no other beats in both output and cost, cheapest first."""
        observations = [o for o in self._state.observations if not o.is_forecast]
        sign = 1.0 if self._state.direction == "minimize" else -1.0
        indices = pareto_front(
            np.array([observation.cost for observation in observations]),
            np.array([sign * observation.output for observation in observations]),
        )
        return [observations[i] for i in indices]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all records and the configuration as JSON, in one step: a crash loses nothing.

        Of constraints that are functions, only the names are written.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(self._state.model_dump_json(indent=1))
        temporary.replace(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        constraints: Iterable[Constraint] | None = None,
        max_cost: float | None = None,
        n_trials: int | None = None,
        budget: float | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: of the file.
            constraints: those that the optimizer was made with. Needed where some of them are
                functions, which a file cannot hold.
            max_cost, n_trials, budget: of the search from its beginning, in place of those it was
                saved with.

        Raises:
            ValueError: the file is no saved optimizer, or was saved with other constraints; says
                where it deviates. Or a limit is not positive.
        """
        limits = _checked_limits(max_cost, n_trials, budget)
        try:
            state = _State.model_validate_json(Path(path).read_bytes())
            if constraints is None:
                constraints = [text for text in state.constraints if isinstance(text, str)]
            optimizer = cls(
                state.params,
                constraints=constraints,
                direction=state.direction,
                max_cost=state.max_cost,
                n_trials=state.n_trials,
                budget=state.budget,
                earlier=state.earlier,
                seed=state.seed,
            )
        except ValueError as error:  # pydantic's ValidationError is one
            raise ValueError(f"{path} is no saved optimizer: {error}") from None
        if optimizer._state.constraints != state.constraints:
            raise ValueError(
                f"{path} was saved with the constraints {state.constraints}, but is loaded with "
                f"{optimizer._state.constraints}: give those that the search was made with, "
                "functions included; or begin another, which learns from it by "
                "earlier=[EarlierSweep.load(path)]"
            )
        told = {name: limit for name, limit in limits.items() if limit is not None}
        optimizer._state = state.model_copy(update=told)
        return optimizer

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in OPTIMIZER:
                raise AttributeError(where(name, OPTIMIZER))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        state, front = self._state, self.pareto_front()
        limits = {name: getattr(state, name) for name in ("max_cost", "n_trials", "budget")}
        told = [f"{name} {value:g}" for name, value in limits.items() if value is not None]
        counts = {"observed": len(state.observations), "failed": len(state.failures)}
        counts["pending"] = len(state.pending)
        told += [f"{count} {name}" for name, count in counts.items() if count]
        if front:
            best = front[-1]
            told += [f"best output {shown(best.output)} at cost {shown(best.cost)}"]
        names = ", ".join(param.name for param in self.space.params)
        return f"CARBS({'; '.join([f'{state.direction} over {names}', *told])})"

    def _repr_html_(self) -> str:
        return self._front_html(repr(self)) if self.observations else self.space._repr_html_()

    def _front_html(self, summary: str) -> str:
        names = [param.name for param in self.space.params]
        rows = [
            [run.output, run.cost, *(run.params.get(name, "") for name in names)]
            for run in self.pareto_front()[-_MOST_ROWS:]
        ]
        caption = f"{summary}\nThe Pareto front, cheapest first"
        return table(["output", "cost", *names], rows, caption)

    def _identify(self, suggestion: Suggestion | Mapping[str, Any]) -> tuple[Params, str | None]:
        if isinstance(suggestion, Suggestion):
            return self.space.check(suggestion.params), suggestion.id
        params = self.space.check(suggestion)
        answered = (pending.id for pending in self._state.pending if pending.params == params)
        return params, next(answered, None)

    def _reopen(self, suggestions: Sequence[Suggestion]) -> None:
        """Let what failed be pending again: something else was to blame."""
        ids = {suggestion.id for suggestion in suggestions}
        self._state.failures = [f for f in self._state.failures if f.id not in ids]
        self._state.pending = [*suggestions, *self._state.pending]

    def _settle(self, id: str | None) -> None:
        self._state.pending = [pending for pending in self._state.pending if pending.id != id]
