"""Snapshots on disk: Orbax writes them atomically and removes old ones.

Orbax's own array handlers write from process 0 only. Here each process has its own snapshots, which
is why there is a handler of our own.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.options import MultiprocessingOptions

from jax_unlearn.runtime.snapshots import Snapshot

FILE = "snapshot"
# Orbax's own file in the directory of a snapshot.
NOTES = "_CHECKPOINT_METADATA"
# The newest snapshot, and the one before it in case the newest is damaged.
MAX_SNAPSHOTS = 2


class SnapshotHandler(ocp.CheckpointHandler):
    """Saves a snapshot as one file."""

    def save(self, directory: epath.Path, args: "Save") -> None:
        (directory / FILE).write_bytes(args.snapshot.to_bytes())

    def restore(self, directory: epath.Path, args: "Restore | None" = None) -> Snapshot:
        return Snapshot.of_bytes((directory / FILE).read_bytes())


@ocp.args.register_with_handler(SnapshotHandler, for_save=True)
@dataclass
class Save(ocp.args.CheckpointArgs):
    snapshot: Snapshot


@ocp.args.register_with_handler(SnapshotHandler, for_restore=True)
@dataclass
class Restore(ocp.args.CheckpointArgs):
    pass


def manager(directory: Path) -> ocp.CheckpointManager:
    """A manager of this process's snapshots in an existing directory.

    What Orbax notes beside a snapshot is removed if it is damaged: it says when the snapshot was
    written, and the snapshot has its own digest.
    """
    here = jax.process_index()
    this_process = MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=MAX_SNAPSHOTS,
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        multiprocessing_options=this_process,
    )

    def opened() -> ocp.CheckpointManager:
        return ocp.CheckpointManager(directory, options=options, item_handlers=SnapshotHandler())

    try:
        return opened()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        notes = list(directory.glob(f"*/{NOTES}"))
        if not notes:
            raise
        for path in notes:
            path.unlink()
        return opened()
