"""What is known of scaling before any run: the priors that laws, sweeps and plans have in common.

Each is a mean and a deviation, or a deviation around zero, and the runs overrule it. Of what is
positive they are those of its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from carbs.search_space import Role

Usual = tuple[float, float]

# What language models cannot learn of their text is a third to nine tenths of the least loss;
# published exponents of N and D are 0.2 to 0.6, those of compute half of that, and without an
# irreducible loss a third. The second over the first is about one.
IRREDUCIBLE_SHARE: Usual = (math.log(0.6), 0.5)
EXPONENT: Usual = (math.log(0.35), 0.5)
EXPONENT_RATIO: Usual = (0.0, 0.5)
COMPUTE_EXPONENT: Usual = (math.log(0.2), 0.7)

# Deviation of the decades that a hyperparameter's optimum moves by for a decade of N, or of D; for
# one of compute, as whose square root both grow, it is half the sum of the two.
OPTIMUM_EXPONENT = 0.5
OPTIMUM_IN_COMPUTE = OPTIMUM_EXPONENT / math.sqrt(2)
# The same for a decade of compute, of those that are known by their role. N and D grow about as
# the square root of compute: Hoffmann et al. 2022, "Training Compute-Optimal Large Language
# Models", table 2, has .46 to .54; Porian et al. 2024, "Resolving Discrepancies in Compute-Optimal
# Scaling of Language Models", about .5. N is depth times the square of width; the two grow alike.
# Of the learning rate and the batch size, Bi et al. 2024, "DeepSeek LLM", sec. 3.1, has -.125 and
# .327; Li et al. 2025, "Predictable Scale: Part I", N^-.713 D^.307 and D^.571: -.20 and .29. How
# they divide between N and D the studies do not agree on: laws of N and D have OPTIMUM_EXPONENT.
GROWTH: Mapping[Role, Usual] = {
    "parameters": (0.5, 0.1),
    "tokens": (0.5, 0.1),
    "width": (1 / 6, 0.05),
    "depth": (1 / 6, 0.05),
    "learning_rate": (-0.15, 0.1),
    "batch_size": (0.3, 0.1),
}
