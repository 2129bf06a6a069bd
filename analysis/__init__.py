"""What a sweep has taught: frames, laws, curves, plans and reports."""

from analysis.hyperparameters import Curve, FrontModel, fit_front, hyperparameter_curves
from analysis.plan import Plan, fit_front_law, plan
from analysis.power_laws import ComputeLaw, fit_compute_law
from analysis.report import write_report
from analysis.trials import study_space, trials_frame

__all__ = [
    "ComputeLaw",
    "Curve",
    "FrontModel",
    "Plan",
    "fit_compute_law",
    "fit_front",
    "fit_front_law",
    "hyperparameter_curves",
    "plan",
    "study_space",
    "trials_frame",
    "write_report",
]
