"""A command in a program leaves the process as it was: torch is there for transformers after it."""

import subprocess
import sys

PROGRAM = """
import os, sys
before = dict(os.environ)
from jax_unlearn.runs.cli import main
main(["inspect", sys.argv[1]])
assert "torch" not in sys.modules
from transformers import AutoModelForImageTextToText
AutoModelForImageTextToText.from_pretrained(sys.argv[1])
changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
assert not {k for k in changed if k.startswith("TRANSFORMERS")}, changed
"""


def test_transformers_finds_torch_after_a_command(tiny_dir):
    command = [sys.executable, "-c", PROGRAM, str(tiny_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
