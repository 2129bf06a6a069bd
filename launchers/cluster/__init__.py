"""Where jobs run: one module for each scheduler; nothing of the sweep, the study or the search."""
