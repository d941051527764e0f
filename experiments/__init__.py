"""Experiments: a script is a figure or table of a paper, run as `python -m experiments.NAME`."""
