"""attacks.json of another form is refused by name; what it does not know is kept."""

import pytest

from jax_unlearn.attacks.record import read_record
from jax_unlearn.runtime.digests import sealed
from jax_unlearn.runtime.errors import UserError

ROW = {"subject": "edited", "setting": {"images": 4}, "seed": 0, "steps": 10}
ROW |= {"true_positive_rate": 0.5, "false_positive_rate": None, "its_own": [1]}
BEST = {"setting": {"images": 4}, "edited": {"true_positive_rate": 0.5}, "controls": {}}


def record(of="relearning", **changed):
    measured = {
        "does": "x", "budget": "x", "controls": {}, "left_out": [], "trials": 1, "done": [],
        "seconds": 1, "rows": [ROW], "strongest": BEST, "says_nothing": [],
    } | changed  # fmt: skip
    facts = {"version": "0", "adapter": "0", "budget": "small", "seeds": 1}
    return {
        "of": facts, "optimised_against": "none", "limits": [], "attacks": {of: measured},
        "not_run": {}, "later": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("of", "changed"),
    [
        ("relearning", {}),
        ("one of a package", {"rows": [ROW | {"setting": {}}], "strongest": None}),
    ],
)
def test_what_is_written_is_read(tmp_path, of, changed):
    (tmp_path / "attacks.json").write_text(sealed(record(of, **changed)))
    assert read_record(tmp_path) == record(of, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"does": 1},
        {"rows": 3},
        {"rows": [ROW | {"setting": {"images": "4"}}]},
        {"rows": [ROW | {"true_positive_rate": None}]},
        {"rows": [ROW | {"steps": "x"}]},
        {"strongest": BEST | {"edited": {}}},
        {"strongest": BEST | {"controls": {"before": 1}}},
    ],
)
def test_another_form_is_refused(tmp_path, changed):
    (tmp_path / "attacks.json").write_text(sealed(record(**changed)))
    with pytest.raises(UserError, match=r"attacks\.json: has another form than this version reads"):
        read_record(tmp_path)


def test_a_run_that_was_not_attacked(tmp_path):
    assert read_record(tmp_path) is None
