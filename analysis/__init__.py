"""What a sweep has taught: frames, laws, curves, plans and reports."""

from analysis.front.expectation import Expectation, SweepBacktest, backtest_sweep
from analysis.front.hyperparameters import Curve, hyperparameter_curves
from analysis.front.model import FrontModel, fit_front
from analysis.front.trials import study_space, trials_frame
from analysis.laws.accuracy import AccuracyLaw, fit_accuracy_law
from analysis.laws.backtest import Backtest, backtest
from analysis.laws.mixing import BestMix, MixingLaw, fit_mixing_law
from analysis.laws.multiplier import Multiplier, compute_multiplier
from analysis.laws.optimum import OptimumLaw, fit_optimum_law, regret
from analysis.laws.power import (
    Allocation,
    ComputeLaw,
    ExtrapolationWarning,
    LossLaw,
    UndeterminedSplitWarning,
    effective_tokens,
    fit_compute_law,
    fit_loss_law,
)
from analysis.laws.runs import RunsFit, fit_runs
from analysis.planning.budget import GPUS, Budget, Failures
from analysis.planning.plan import Plan, Rung, Verdict, check, fit_front_law, plan
from analysis.report.report import write_report

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
