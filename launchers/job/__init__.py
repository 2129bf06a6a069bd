"""What runs inside a trial's process, and the files in its folder; nothing of the controller."""

from carbs.launchers.job.protocol import BadConfigurationError, Job, Preempted, Result, StoppedEarly

__all__ = ["BadConfigurationError", "Job", "Preempted", "Result", "StoppedEarly"]
