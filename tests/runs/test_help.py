"""Help: light to start, complete, and the commands by their names."""

import subprocess
import sys
from typing import get_args

import pytest
from rich.console import Console

from jax_unlearn.runs.cli import COMMANDS, main
from jax_unlearn.runs.command_line import Command
from jax_unlearn.runs.help import GROUPS, grouped, print_help
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.presets import PRESETS
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.used_if import leaf_fields, option

LIGHT = """
import sys
from jax_unlearn.runs.cli import main
try:
    main({arguments!r})
except SystemExit as exit:
    assert exit.code in (None, {code})
heavy = {{"jax", "numpy", "tyro", "rich", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--version"], 0), ([], 2)])
def test_help_and_version_import_nothing_heavy(arguments, code):
    program = LIGHT.format(arguments=arguments, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jax-unlearn" in done.stdout


def test_nothing_is_looked_through_at_the_exit():
    """Python's last collection would take up to a second; also after an error."""
    program = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > len(gc.get_objects())))\n"
        "from jax_unlearn.__main__ import main\n"
        "sys.argv[1:] = ['inspect', '/nowhere']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1]) == (2, "True"), done.stderr


def test_every_command_is_listed(capsys):
    commands = [get_args(one)[1].name for one in get_args(Command)]
    assert list(COMMANDS) == commands
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in commands)


@pytest.mark.parametrize(("command", "kind"), [("run", RunConfig), ("sweep", SweepConfig)])
def test_every_setting_is_in_one_group(command, kind, capsys):
    names = [one.name for options in grouped(command).values() for one in options]
    added = {"config", "preset"} if command == "run" else {"config"}
    assert sorted(names) == sorted({*leaf_fields(kind), *added})
    assert next(iter(GROUPS.values())) == ("checkpoint", "forget", "preserve", "concept", "out")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert all(option(name) in shown for name in names)
    assert shown.count(f"jax-unlearn {command} --") == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonesuch", "Unrecognized options: nonesuch"),
        ("export", "Missing from jax-unlearn export: PATH"),
        ("run --checkpoint x --out y", "x: no such directory"),
        (
            f"run --checkpoint {ASSETS}/checkpoint --out y --rank many",
            "Error parsing --rank: invalid literal for int()",
        ),
        ("run --out y --preset x", "argument --preset: invalid choice: 'x'"),
        (
            f"run --checkpoint {ASSETS}/checkpoint --out y --rank",
            "Missing value for argument '--rank'",
        ),
    ],
)
def test_what_cannot_be_parsed_is_one_line(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    found = capsys.readouterr()
    (said,) = found.err.splitlines()
    assert said.startswith("jax-unlearn: ")
    assert message in said
    assert found.out == ""


def test_the_presets_are_those_that_there_are():
    (preset,) = (one for one in grouped("run")["settings from elsewhere"] if one.name == "preset")
    known = {name for presets in PRESETS.values() for name in presets}
    assert set(preset.values.split(", ")) == known


def test_help_fits_a_narrow_terminal(capsys):
    print_help("run", Console(width=80))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
