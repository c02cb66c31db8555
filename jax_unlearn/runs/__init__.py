"""Runs: settings, sources, commands, run directory and report."""

# Name and description of the command line.
PROGRAM = "jax-unlearn"
DESCRIPTION = "Make a vision-language model forget something it sees."
