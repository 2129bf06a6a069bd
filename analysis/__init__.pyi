from .front.expectation import (
    Expectation as Expectation,
)
from .front.expectation import (
    SweepBacktest as SweepBacktest,
)
from .front.expectation import (
    backtest_sweep as backtest_sweep,
)
from .front.hyperparameters import Curve as Curve
from .front.hyperparameters import hyperparameter_curves as hyperparameter_curves
from .front.model import FrontModel as FrontModel
from .front.model import fit_front as fit_front
from .front.trials import study_space as study_space
from .front.trials import trials_frame as trials_frame
from .laws.accuracy import AccuracyLaw as AccuracyLaw
from .laws.accuracy import fit_accuracy_law as fit_accuracy_law
from .laws.backtest import Backtest as Backtest
from .laws.backtest import backtest as backtest
from .laws.mixing import (
    BestMix as BestMix,
)
from .laws.mixing import (
    MixingLaw as MixingLaw,
)
from .laws.mixing import (
    fit_mixing_law as fit_mixing_law,
)
from .laws.multiplier import Multiplier as Multiplier
from .laws.multiplier import compute_multiplier as compute_multiplier
from .laws.optimum import (
    OptimumLaw as OptimumLaw,
)
from .laws.optimum import (
    fit_optimum_law as fit_optimum_law,
)
from .laws.optimum import (
    regret as regret,
)
from .laws.power import (
    Allocation as Allocation,
)
from .laws.power import (
    ComputeLaw as ComputeLaw,
)
from .laws.power import (
    ExtrapolationWarning as ExtrapolationWarning,
)
from .laws.power import (
    LossLaw as LossLaw,
)
from .laws.power import (
    UndeterminedSplitWarning as UndeterminedSplitWarning,
)
from .laws.power import (
    effective_tokens as effective_tokens,
)
from .laws.power import (
    fit_compute_law as fit_compute_law,
)
from .laws.power import (
    fit_loss_law as fit_loss_law,
)
from .laws.runs import RunsFit as RunsFit
from .laws.runs import fit_runs as fit_runs
from .planning.budget import GPUS as GPUS
from .planning.budget import Budget as Budget
from .planning.budget import Failures as Failures
from .planning.plan import (
    Plan as Plan,
)
from .planning.plan import (
    Rung as Rung,
)
from .planning.plan import (
    Verdict as Verdict,
)
from .planning.plan import (
    check as check,
)
from .planning.plan import (
    fit_front_law as fit_front_law,
)
from .planning.plan import (
    plan as plan,
)
from .report.report import write_report as write_report
