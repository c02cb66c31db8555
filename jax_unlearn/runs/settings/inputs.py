"""The files and directories that a run reads; its output must be apart from them."""

from pathlib import Path

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.runtime.hub import hub_id
from jax_unlearn.runtime.outputs import check_output
from jax_unlearn.runtime.used_if import leaf_fields, option


def check_out(
    out: Path, samples: SampleSettings, run: Path | None = None, name: str = "--out"
) -> None:
    """Check that an output is apart from the inputs of a run, and from the run that is read.

    Args:
        out: the directory to create.
        samples: the inputs.
        run: directory of an existing run that the command reads.
        name: the option or argument that names `out`.

    Raises:
        UserError: `out` is an input, holds one or lies in one.
    """
    inputs = {
        option(name): paths for name in leaf_fields(samples) if (paths := _read(samples, name))
    }
    check_output(out, {"the run": [run] if run else [], **inputs}, name)


def _read(samples: SampleSettings, name: str) -> list[Path]:
    """The local paths that a setting stands for."""
    value = getattr(samples, name)
    if name == "checkpoint" and hub_id(value):
        return []
    values = value if isinstance(value, tuple) else (value,)
    return [Path(one) for one in values if isinstance(one, Path) or _is_list_of_names(name, one)]


def _is_list_of_names(name: str, value: str | None) -> bool:
    return bool(value) and name.endswith("_text") and str(value).endswith(".txt")
