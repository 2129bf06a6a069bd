from .constraints import Constraint as Constraint
from .earlier import EarlierSweep as EarlierSweep
from .optimizer import CARBS as CARBS
from .records import Failure as Failure
from .records import Observation as Observation
from .records import Suggestion as Suggestion
from .space import (
    ChoiceSpace as ChoiceSpace,
)
from .space import (
    LinearSpace as LinearSpace,
)
from .space import (
    LogitSpace as LogitSpace,
)
from .space import (
    LogSpace as LogSpace,
)
from .space import (
    MixtureSpace as MixtureSpace,
)
from .space import (
    Param as Param,
)
from .space import (
    SearchSpace as SearchSpace,
)
