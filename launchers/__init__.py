"""From suggestions to finished jobs: the sweep, its executors, its command line."""
