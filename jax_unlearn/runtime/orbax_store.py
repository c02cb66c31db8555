"""Snapshots on disk: Orbax makes them appear whole or not at all, and removes old ones.

Orbax's own handlers of arrays write from process 0 only. Here each process has snapshots of its
own, so there is a handler for them.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.options import MultiprocessingOptions

from jax_unlearn.runtime.snapshots import Snapshot

FILE = "snapshot"
# The newest, and the one before until that is whole.
KEPT = 2


class SnapshotHandler(ocp.CheckpointHandler):
    """A snapshot as one file."""

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
    """Of this process's snapshots in a directory that is there."""
    here = jax.process_index()
    alone = MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        multiprocessing_options=alone,
    )
    return ocp.CheckpointManager(directory, options=options, item_handlers=SnapshotHandler())
