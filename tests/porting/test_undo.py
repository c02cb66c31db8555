"""An undo file that was changed is refused, wherever the change is."""

import pytest

from jax_unlearn.runtime.errors import UserError
from porting import merge_checkpoint, unmerge_checkpoint
from tests import tiny


def test_a_changed_undo_file_is_refused(tiny_dir, tmp_path):
    merged, undo = tmp_path / "merged", tmp_path / "undo"
    merge_checkpoint(tiny.adapter(), tiny_dir, merged, undo=undo)
    original = undo.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    alpha = original.index(b'"alpha":"') + len(b'"alpha":"')
    for at in (alpha, original.index(b'"left_out"') + 2, end, (end + len(original)) // 2, -1):
        changed = bytearray(original)
        changed[at] ^= 1
        undo.write_bytes(changed)
        with pytest.raises(UserError, match=f"--undo {undo}: ") as caught:
            unmerge_checkpoint(merged, undo, tmp_path / "back")
        assert at == original.index(b'"left_out"') + 2 or "has changed since" in str(caught.value)
        assert not (tmp_path / "back").exists()
    undo.write_bytes(original)
    unmerge_checkpoint(merged, undo, tmp_path / "back")
