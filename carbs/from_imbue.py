"""The names of imbue-ai/carbs, and where what they stand for is here.

Who comes from there, and asks for one of them, is told; ``docs/from_imbue.md`` has all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

PAGE = "docs/from_imbue.md has every name of imbue-ai/carbs"

_CONFIG = (
    "there is no configuration object: CARBS(params, direction='minimize', max_cost=..., seed=...)"
)
_OBSERVE = (
    "optimizer.observe(suggestion, output=..., cost=...), or "
    "optimizer.observe_failure(suggestion, reason=...)"
)
_EARLIER = "CARBS(params, earlier=[EarlierSweep.load(path, defaults={...})])"
_WANDB = "the optimizer logs nowhere: log its suggestions and observations as you like"

# Of the package, ``from carbs import ...``.
NAMES = {
    "CARBSParams": _CONFIG,
    "ObservationInParam": _OBSERVE,
    "ObservationInBasic": "optimizer.observations, each with params, output and cost",
    "ObserveOutput": "observe() returns nothing: look at the optimizer",
    "SuggestOutput": "suggest() returns a Suggestion: its params, and what is predicted of it",
    "SuggestionInBasic": "optimizer.pending, each a Suggestion",
    "ParamSpace": "carbs.spaces has the kinds of space",
    "RealNumberSpace": "LinearSpace, LogSpace and LogitSpace are of carbs.spaces.NumericSpace",
    "ParamDictType": "a configuration is a dict of plain values, carbs.spaces.Params",
    "ParamType": "a value is a plain number, string, truth value or mixture: carbs.spaces.Value",
    "WandbLoggingParams": _WANDB,
    "SurrogateModelParams": "carbs.surrogate.fit_surrogate(space, observations, failures)",
    "OutstandingSuggestionEstimatorEnum": "pending suggestions always count, and none is chosen",
    "AcquisitionFunctionEnum": "there is one acquisition function, carbs.acquisition",
    "get_pareto_groups": "optimizer.pareto_front()",
    "get_pareto_groups_conservative": "optimizer.pareto_front()",
    "get_pareto_curve_plot": "SearchResult(optimizer).plot()",
    "group_observations": "optimizer.observations; repeats stand there one by one",
    "observation_group_cost": "optimizer.observations, each with its cost",
    "observation_group_output": "optimizer.observations, each with its output",
    "pareto_area_from_groups": "carbs.pareto.hypervolume(costs, outputs, ...)",
    "expected_improvement": "carbs.acquisition",
    "probability_of_improvement": "carbs.acquisition",
    "load_observations_from_wandb_run": "observe them: optimizer.observe(params, output=, cost=)",
    "load_checkpoint_from_wandb_run": "CARBS.load(path), of a file that CARBS.save wrote",
    "load_latest_checkpoint_from_wandb_run": "CARBS.load(path), of a file that CARBS.save wrote",
}

# Of the optimizer and its class.
OPTIMIZER = {
    "config": _CONFIG,
    "params": "optimizer.space.params",
    "param_space_by_name": "optimizer.space.params, each with its space",
    "set_search_center": "each Param has its search_center; CARBS(params) is made anew with others",
    "initialize_from_observations": "optimizer.observe(params, output=..., cost=...) for each",
    "forget_suggestion": "optimizer.forget(suggestion)",
    "success_observations": "optimizer.observations",
    "failure_observations": "optimizer.failures",
    "outstanding_suggestions": "optimizer.pending",
    "observation_count": "len(optimizer.observations) + len(optimizer.failures)",
    "cumulative_cost": "sum(run.cost for run in optimizer.observations)",
    "resample_count": "nothing is sampled again on purpose",
    "save_to_file": "optimizer.save(path), as JSON",
    "load_from_file": "CARBS.load(path), of a file that CARBS.save wrote",
    "serialize": "optimizer.save(path), as JSON",
    "load_from_string": "CARBS.load(path), of a file that CARBS.save wrote",
    "get_state_dict": "optimizer.save(path), as JSON",
    "load_state_dict": "CARBS.load(path), of a file that CARBS.save wrote",
    "warm_start": _EARLIER,
    "warm_start_from_wandb": _EARLIER,
}

# Of what suggest() returns.
SUGGESTION = {
    "suggestion": "suggestion.params, the configuration; hand the suggestion itself to observe()",
    "log": "suggestion.predicted_output, predicted_cost and success_probability",
}

# Keywords: those of CARBSParams and of CARBS, of suggest(), of observe(), of the spaces.
CONFIG_KEYWORDS = {
    "config": _CONFIG,
    "better_direction_sign": "direction='minimize' (the default) for -1, 'maximize' for 1",
    "max_suggestion_cost": "max_cost",
    "num_random_samples": "four runs near the centre come first; it is not set",
    "initial_search_radius": "the scale of each space says how far a step reaches",
    "resample_frequency": "nothing is sampled again on purpose: the noise is part of the surrogate",
    "min_pareto_cost_fraction": "the whole front counts, its cheap end too",
    "exploration_bias": "n_trials and budget say how the search should go about",
    "num_candidates_for_suggestion_per_dim": "it is not set",
    "is_pareto_group_selection_conservative": "it is not set",
    "is_expected_improvement_pareto_value_clamped": "it is not set",
    "is_expected_improvement_value_always_max": "it is not set",
    "outstanding_suggestion_estimator": NAMES["OutstandingSuggestionEstimatorEnum"],
    "is_wandb_logging_enabled": _WANDB,
    "wandb_params": _WANDB,
    "checkpoint_dir": "optimizer.save(path), or minimize(..., path=...), which saves every run",
    "s3_checkpoint_path": "optimizer.save(path), and copy the file",
    "is_saved_on_every_observation": "minimize(..., path=...), or optimizer.save(path) in the loop",
}
SUGGEST_KEYWORDS = {
    "suggestion_id": "a suggestion has an id of its own, suggestion.id",
    "is_suggestion_remembered": "optimizer.forget(suggestion) drops one",
}
OBSERVE_KEYWORDS = {
    "new_observation_in_param": _OBSERVE,
    "input": _OBSERVE,
    "is_failure": _OBSERVE,
}

Method = TypeVar("Method", bound=Callable[..., Any])


def where(name: str, there: Mapping[str, str]) -> str:
    """Where a name went, in a sentence."""
    return f"{name!r} is a name of imbue-ai/carbs; here: {there[name]} ({PAGE})"


def no_keywords_of_imbue(there: Mapping[str, str]) -> Callable[[Method], Method]:
    """Of a method: says where its keywords went, where Python would call them unexpected."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def explaining(*arguments: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name in there:
                    raise TypeError(where(name, there))
            return method(*arguments, **keywords)

        return explaining  # type: ignore[return-value]  # it takes and gives the same

    return decorate


class Explaining(type):
    """Of a class: says where its attributes went."""

    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            if name in OPTIMIZER:
                raise AttributeError(where(name, OPTIMIZER))
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
