"""What the user types: the commands of `carbs`, and what they print; no decision about a trial."""
