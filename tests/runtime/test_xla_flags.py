"""What the compiler is told before JAX starts."""

import os
import subprocess
import sys

from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.xla_flags import FLAGS, make_reproducible


def test_a_flag_of_the_users_own_stays(monkeypatch):
    given = "--xla_gpu_autotune_level=4 --xla_dump_to='a b'"
    monkeypatch.setenv("XLA_FLAGS", given)
    make_reproducible()
    make_reproducible()
    ours = [f"--{name}={value}" for name, value in FLAGS.items() if "autotune" not in name]
    assert os.environ["XLA_FLAGS"] == " ".join([given, *ours])


def test_a_file_of_flags_is_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "/some/flags")
    make_reproducible()
    assert os.environ["XLA_FLAGS"] == "/some/flags"


def test_a_command_sets_them_and_this_xla_knows_them(tiny_dir, monkeypatch, capsys):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    main(["inspect", str(tiny_dir)])
    capsys.readouterr()
    assert set(os.environ["XLA_FLAGS"].split()) == {f"--{k}={v}" for k, v in FLAGS.items()}
    # An unknown flag ends the process.
    program = "import jax; print(jax.numpy.ones(2).sum())"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
