"""What a sweep shows inside its range: its trials, the Pareto front, each optimum along it."""
