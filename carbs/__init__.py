"""carbs: a cost-aware hyperparameter and scaling-law optimizer for training language models."""

from carbs.constraints import Constraint
from carbs.earlier import EarlierSweep
from carbs.optimizer import CARBS
from carbs.records import Failure, Observation, Suggestion
from carbs.space import (
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
)

__all__ = [
    "CARBS",
    "ChoiceSpace",
    "Constraint",
    "EarlierSweep",
    "Failure",
    "LinearSpace",
    "LogSpace",
    "LogitSpace",
    "MixtureSpace",
    "Observation",
    "Param",
    "SearchSpace",
    "Suggestion",
]
