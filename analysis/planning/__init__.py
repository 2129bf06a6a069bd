"""What to run beyond the sweep: from a budget to a configuration and its expected loss."""
