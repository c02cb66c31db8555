"""Progress without a terminal: a line every few seconds, and none for short work."""

import io

import pytest
from rich.console import Console

from jax_unlearn.runtime import progress
from jax_unlearn.runtime.progress import progress_bar


@pytest.mark.parametrize(("every", "lines"), [(0.0, 3), (60.0, 0)])
def test_lines_in_place_of_a_bar(every, lines, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", every)
    out = io.StringIO()
    with progress_bar(Console(file=out, width=100)) as bar:
        task = bar.add_task("Training images [of me]", total=3000)
        for _ in range(3):
            bar.advance(task, 1000)
    said = out.getvalue().splitlines()
    assert len(said) == lines
    assert all(line.startswith("Training images [of me]: ") for line in said)
    assert [line.split(": ")[1].split(",   ")[0][:14] for line in said] == [
        "1,000 of 3,000",
        "2,000 of 3,000",
        "3,000 of 3,000",
    ][:lines]
