"""Options of a compiler that may be another one's."""

import jax
import pytest

from jax_unlearn.models import tower_jit


def test_an_option_that_the_compiler_does_not_have_is_dropped_with_a_warning(monkeypatch):
    backend = jax.default_backend()
    monkeypatch.setitem(tower_jit.OPTIONS, backend, {"xla_no_such_option": "1"})
    double = tower_jit.tower_jit()(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="no option xla_no_such_option"):
        assert double(3.0) == 6.0
    assert double.compilations() == 1


def test_the_options_that_are_used_here_are_known():
    assert tower_jit.supported(tower_jit.OPTIONS.get("cpu")) == tower_jit.OPTIONS["cpu"]
    assert tower_jit.supported(None) is None
