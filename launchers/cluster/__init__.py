"""Where jobs run: the executors, and the scheduler's commands and options; nothing of a sweep."""
