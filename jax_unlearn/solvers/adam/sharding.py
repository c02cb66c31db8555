"""Shard the rows of a problem over several devices; XLA sums their terms."""

from dataclasses import replace
from typing import TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.objective.loss import Problem, ProjectorProblem
from jax_unlearn.runtime.mesh import everywhere, over_data

Tree = TypeVar("Tree")


def shard_rows(problem: Problem, mesh: Mesh | None) -> Problem:
    """Shard the rows of each Linear over all devices of the mesh.

    A Merger's part (`merger_problem`) is replicated, since the tokens of a row must stay together.
    Without a mesh, or with a single device, the problem is returned unchanged.
    """
    if mesh is None or mesh.devices.size == 1:
        return problem
    return {name: _shard_part(part, mesh) for name, part in problem.items()}


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """Replicate arrays on all devices of the mesh; unchanged without a mesh or on one device."""
    if mesh is None or mesh.devices.size == 1:
        return tree
    return jax.device_put(tree, everywhere(mesh))


def _shard_part(part: ProjectorProblem, mesh: Mesh) -> ProjectorProblem:
    if not isinstance(part, LinearProblem):
        return replicate(part, mesh)
    arrays = {name: getattr(part, name) for name in ("forget", "residual", "preserve")}
    # The row counts for the reduction `mean` are fields of the part and do not include padding.
    return replace(part, **{name: _shard(rows, mesh) for name, rows in arrays.items()})


def _shard(rows: Float[Array | np.ndarray, "n width"], mesh: Mesh) -> Float[Array, "m width"]:
    """Rows sharded over all devices, padded to equal shares with zeros, which change no norm."""
    missing = -len(rows) % mesh.devices.size
    return jax.device_put(np.pad(rows, ((0, missing), (0, 0))), over_data(mesh))
