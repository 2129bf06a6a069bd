"""Scaling laws of anyone's runs: arrays and tables in, laws with intervals out; no study, no sweep."""
