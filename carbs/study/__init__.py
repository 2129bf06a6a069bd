"""An Optuna study as the record of a search: its trials are our records, and back.

A study of ours has two objectives, (output, cost); in one with a single objective the cost of a
trial is its duration in seconds, or what one of its user attributes says. Each parameter is an
Optuna parameter of the same name; a mixture is one for each component, ``mix.code``. A parameter
that is inactive in a trial is not stored with it. What Optuna has no place for lies in trial
attributes: what was predicted when a trial was suggested (``predicted``), why it failed
(``failure``), its learning curve (``curve``, rows of progress, output and cost), and where it was
stopped early, the forecast of its end and what it spent (``stopped``). Where the cost of a trial
was corrected for the speed of its machine, ``spent`` is what was measured. A failed trial marked
``forgotten`` was the machine's fault and teaches nothing; nor do those whose numbers the study's
attribute ``dropped`` lists. Its attribute ``earlier_values`` has what trials used that lack a
parameter which was added later.
"""

from carbs.study.define_by_run import inferred_space
from carbs.study.flat import distributions, flat_names, flatten, unflatten
from carbs.study.pruner import FrontPruner
from carbs.study.sampler import CarbsSampler
from carbs.study.trials import (
    CURVE,
    DROPPED,
    EARLIER_VALUES,
    FAILURE,
    FORGOTTEN,
    PREDICTED,
    SPENT,
    STOPPED,
    Records,
    create_study,
    earlier_sweep,
    kept_trials,
    read_trials,
    records,
    set_attribute,
    tell_failure,
    tell_forgotten,
    tell_stopped,
    with_values,
)

__all__ = [
    "CURVE",
    "DROPPED",
    "EARLIER_VALUES",
    "FAILURE",
    "FORGOTTEN",
    "PREDICTED",
    "SPENT",
    "STOPPED",
    "CarbsSampler",
    "FrontPruner",
    "Records",
    "create_study",
    "distributions",
    "earlier_sweep",
    "flat_names",
    "flatten",
    "inferred_space",
    "kept_trials",
    "read_trials",
    "records",
    "set_attribute",
    "tell_failure",
    "tell_forgotten",
    "tell_stopped",
    "unflatten",
    "with_values",
]
