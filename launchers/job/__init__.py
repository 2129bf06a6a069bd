"""What runs inside a trial's process, and the files in its folder; nothing of the controller."""
