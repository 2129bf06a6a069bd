"""The control loop and its records: what to run next, what the end of a job means, what the study is told."""
