"""Scaling laws of anyone's runs: tables in, laws with intervals out; no study, no sweep."""
