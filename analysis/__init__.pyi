from . import datasets as datasets
from .front.expectation import (
    Expectation as Expectation,
    SweepBacktest as SweepBacktest,
    backtest_sweep as backtest_sweep,
)
from .front.hyperparameters import Curve as Curve, hyperparameter_curves as hyperparameter_curves
from .front.model import FrontModel as FrontModel, fit_front as fit_front
from .front.questions import (
    AnsweredSet as AnsweredSet,
    Seal as Seal,
    question_evidence as question_evidence,
)
from .front.trials import study_space as study_space, trials_frame as trials_frame
from .laws.accuracy import (
    AccuracyChain as AccuracyChain,
    AccuracyLaw as AccuracyLaw,
    fit_accuracy_law as fit_accuracy_law,
)
from .laws.backtest import Backtest as Backtest, backtest as backtest
from .laws.experts import (
    ExpertAllocation as ExpertAllocation,
    ExpertLaw as ExpertLaw,
    fit_expert_law as fit_expert_law,
)
from .laws.mixing import (
    BestMix as BestMix,
    MixingLaw as MixingLaw,
    fit_mixing_law as fit_mixing_law,
)
from .laws.multiplier import Multiplier as Multiplier, compute_multiplier as compute_multiplier
from .laws.optimum import (
    OptimumLaw as OptimumLaw,
    fit_optimum_law as fit_optimum_law,
    regret as regret,
)
from .laws.power import (
    Allocation as Allocation,
    ComputeLaw as ComputeLaw,
    ExtrapolationWarning as ExtrapolationWarning,
    LossLaw as LossLaw,
    UndeterminedLawWarning as UndeterminedLawWarning,
    UndeterminedSplitWarning as UndeterminedSplitWarning,
)
from .laws.power_fits import (
    fit_compute_law as fit_compute_law,
    fit_loss_law as fit_loss_law,
)
from .laws.repetition import (
    Repetition as Repetition,
    effective_tokens as effective_tokens,
)
from .laws.runs import RunsFit as RunsFit, fit_runs as fit_runs, read_runs as read_runs
from .laws.scaled_mixing import (
    MixingLawAtScale as MixingLawAtScale,
    ScaledMixingLaw as ScaledMixingLaw,
    fit_scaled_mixing_law as fit_scaled_mixing_law,
)
from .planning.budget import GPUS as GPUS, Budget as Budget, Failures as Failures
from .planning.plan import (
    Alternative as Alternative,
    Plan as Plan,
    Rung as Rung,
    Verdict as Verdict,
    check as check,
    fit_front_law as fit_front_law,
    plan as plan,
)
from .report.report import write_report as write_report
