"""What a sweep has taught: frames, laws, curves, plans and reports."""

from analysis.accuracy_laws import AccuracyLaw, fit_accuracy_law
from analysis.backtest import Backtest, backtest
from analysis.budget import GPUS, Budget, Failures
from analysis.expectation import Expectation, SweepBacktest, backtest_sweep
from analysis.front import FrontModel, fit_front
from analysis.hyperparameters import Curve, hyperparameter_curves
from analysis.mixing import BestMix, MixingLaw, fit_mixing_law
from analysis.multiplier import Multiplier, compute_multiplier
from analysis.optimum_laws import OptimumLaw, fit_optimum_law, regret
from analysis.plan import Plan, Rung, Verdict, check, fit_front_law, plan
from analysis.power_laws import (
    Allocation,
    ComputeLaw,
    ExtrapolationWarning,
    LossLaw,
    UndeterminedSplitWarning,
    effective_tokens,
    fit_compute_law,
    fit_loss_law,
)
from analysis.report import write_report
from analysis.runs import RunsFit, fit_runs
from analysis.trials import study_space, trials_frame

__all__ = [
    "GPUS",
    "AccuracyLaw",
    "Allocation",
    "Backtest",
    "BestMix",
    "Budget",
    "ComputeLaw",
    "Curve",
    "Expectation",
    "ExtrapolationWarning",
    "Failures",
    "FrontModel",
    "LossLaw",
    "MixingLaw",
    "Multiplier",
    "OptimumLaw",
    "Plan",
    "Rung",
    "RunsFit",
    "SweepBacktest",
    "UndeterminedSplitWarning",
    "Verdict",
    "backtest",
    "backtest_sweep",
    "check",
    "compute_multiplier",
    "effective_tokens",
    "fit_accuracy_law",
    "fit_compute_law",
    "fit_front",
    "fit_front_law",
    "fit_loss_law",
    "fit_mixing_law",
    "fit_optimum_law",
    "fit_runs",
    "hyperparameter_curves",
    "plan",
    "regret",
    "study_space",
    "trials_frame",
    "write_report",
]
