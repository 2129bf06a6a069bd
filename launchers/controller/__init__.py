"""The control loop and its records: what runs next, what an end means, what the study is told."""
