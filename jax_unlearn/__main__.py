"""`python -m jax_unlearn`: the command line."""

from jax_unlearn.runs.cli import main

if __name__ == "__main__":
    main()
