"""A problem over several devices: each has some of the rows, and XLA adds up their terms."""

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


def spread(problem: Problem, mesh: Mesh | None) -> Problem:
    """The same problem with the rows of each Linear divided over all devices of the mesh.

    A Merger's part (`merger_problem`), whose tokens belong to rows that may not be torn apart, is
    whole on every device. Without a mesh, or on one of a single device, nothing is moved.
    """
    if mesh is None or mesh.devices.size == 1:
        return problem
    return {name: _spread(part, mesh) for name, part in problem.items()}


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The same arrays on all devices of the mesh; as they are, where `spread` moves nothing."""
    if mesh is None or mesh.devices.size == 1:
        return tree
    return jax.device_put(tree, everywhere(mesh))


def _spread(part: ProjectorProblem, mesh: Mesh) -> ProjectorProblem:
    if not isinstance(part, LinearProblem):
        return replicate(part, mesh)
    arrays = {name: getattr(part, name) for name in ("forget", "residual", "preserve")}
    # The numbers of rows, by which `mean` divides, are the part's own and stay as they were.
    return replace(part, **{name: divided(rows, mesh) for name, rows in arrays.items()})


def divided(rows: Float[Array | np.ndarray, "n width"], mesh: Mesh) -> Float[Array, "m width"]:
    """Rows over all devices, with rows of zeros, which add nothing to a norm, for equal shares."""
    missing = -len(rows) % mesh.devices.size
    return jax.device_put(np.pad(rows, ((0, missing), (0, 0))), over_data(mesh))
