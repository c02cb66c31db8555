"""The temporary folder of a process is gone when the process is."""

import subprocess
import sys
from pathlib import Path

import pytest

from jax_unlearn.runtime import temporary_files


@pytest.mark.parametrize("ending", ["", "1 / 0", "remove_temporary_folder(); os._exit(0)"])
def test_it_is_removed_at_exit(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = f"""
import os
from temporary_files import remove_temporary_folder, temporary_folder
path = temporary_folder() / "a"
path.write_text("x")
print(temporary_folder(), path.exists(), flush=True)
{ending}
"""
    # The file alone, since the package takes a second to import.
    monkeypatch.setenv("PYTHONPATH", str(Path(temporary_files.__file__).parent))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert done.stdout.startswith(f"{tmp_path}/jax-unlearn-")
    assert done.stdout.endswith(" True\n")
    assert list(tmp_path.iterdir()) == []
