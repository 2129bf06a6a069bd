from .constraints import Constraint as Constraint
from .earlier import EarlierSweep as EarlierSweep
from .loop import FunctionFailsError as FunctionFailsError, minimize as minimize
from .optimizer import CARBS as CARBS
from .records import Failure as Failure, Observation as Observation, Suggestion as Suggestion
from .result import SearchResult as SearchResult
from .search_space import Param as Param, SearchSpace as SearchSpace
from .spaces import (
    ChoiceSpace as ChoiceSpace,
    LinearSpace as LinearSpace,
    LogitSpace as LogitSpace,
    LogSpace as LogSpace,
    MixtureSpace as MixtureSpace,
)
