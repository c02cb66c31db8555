"""The stand-in edit: make the images to forget indistinguishable from those of one other class.

Every image to forget is sent to the embedding of one image of the stand-in class, matched by
everything except the class. A ridge regression to these targets shrinks the cloud of the outputs,
and a linear reader finds the class by that. Therefore the fitted outputs are moved to the mean and
covariance of the stand-in class by optimal transport between Gaussians, and fitted again, a few
times. Image means and the tokens' deviations from them are fitted together. Per projector, with
x̃ = [x 1] the image means at its last Linear, r the deviations of tokens from their image's mean,
B = [W b]ᵀ, and n and N the numbers of images and tokens,

    H = X̃_fᵀX̃_f / n_f + w R_f / N_f + λ (X̃_pᵀX̃_p / n_p + w R_p / N_p) + γ tr / D · I
    C = X̃_fᵀ (T − X̃_f B) / n_f + w r_fᵀ (Θ − r_f W) / N_f              M = H⁻¹ C
    T ← m_g + (Ŷ − m̂) A        Θ ← ρ̂ A'        Ŷ = X̃_f (B + M),  ρ̂ = r_f (W + M_W)

A is the transport from the covariance of Ŷ to that of the stand-in's outputs over all projectors
together, A' that of the token deviations of one projector. The last M is cut to the given rank in
the metric of H, which is the best change of that rank for the ridge regression. The change of the
bias is the last row of M.

The tokens enter through Gram matrices only (`features.stand_in.TokenMoments`).
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from jax_unlearn.features.stand_in import TokenMoments
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.stand_in import NOTHING, StandInRows
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.closed_form.ridge import right_vectors, threads
from jax_unlearn.solvers.leace import towards_identity
from jax_unlearn.solvers.result import Result, history_of

# Weight w of the token deviations beside the image means.
TOKENS = 0.5
# Ridge γ as a share of the mean diagonal.
RIDGE = 1e-4
# Share of the identity in both covariances of a transport.
SHRINKAGE = 0.1
ROUNDS = 12
# Largest number of principal components in which the joint transport is computed.
COMPONENTS = 512

Matrix = Float64[np.ndarray, "_ _"]


class Ridge:
    """The ridge regression of one projector for all concepts together.

    Its factor does not depend on the targets. The moments of the concepts add up, so that what one
    concept moves, another that lies beside it does not move again.
    """

    def __init__(self, concepts: Sequence[StandInRows], preserve: float) -> None:
        """`preserve`: the weight λ of the images to keep."""
        first = concepts[0]
        # Row-major as all products, since a sum of two orders takes ten times as long.
        self.w = np.ascontiguousarray(first.weight.T, np.float64)
        self.b = np.concatenate([self.w, first.bias[None].astype(np.float64)])
        self.x = [with_ones(one.forget) for one in concepts]
        self.own = [x @ self.b for x in self.x]
        self.tokens = [one.tokens for one in concepts]
        h = preserve * first.preserve
        for x in self.x:
            h = h + x.T @ x / len(x)
        for tokens in self.tokens:
            if tokens:
                h[:-1, :-1] += TOKENS * tokens.forget
        if first.tokens:
            h[:-1, :-1] += TOKENS * preserve * first.tokens.preserve
        h[np.diag_indices(len(h))] += RIDGE * np.trace(h) / len(h)
        self.factor = cho_factor(h, lower=True)

    def moments(self, targets: Sequence[Matrix], tokens: Sequence[Matrix | None]) -> Matrix:
        """C, from each concept's targets T and product r_fᵀ (Θ − r_f W) / N_f."""
        c = np.zeros_like(self.b)
        for x, own, target, moved in zip(self.x, self.own, targets, tokens, strict=True):
            c += x.T @ (target - own) / len(x)
            if moved is not None:
                c[:-1] += TOKENS * moved
        return c

    def change(self, c: Matrix) -> Matrix:
        """M of full rank."""
        return np.asarray(cho_solve(self.factor, c))

    def pair(self, c: Matrix, rank: int) -> LoraPair:
        """M of the given rank, as factors for alpha = rank."""
        lower = self.factor[0]
        whitened = solve_triangular(lower, c, lower=True)
        right = right_vectors(whitened, min(rank, *whitened.shape))
        u, s, v = np.linalg.svd(whitened @ right, full_matrices=False)
        left = solve_triangular(lower, u, lower=True, trans=1)
        b = right @ (v.T * s)
        parts = left[:-1].T, b, b @ left[-1]
        return LoraPair(*(np.ascontiguousarray(part, np.float32) for part in parts))


def preserve_weight(lambda_forget: float, lambda_preserve: float) -> float:
    """λ: the weight of the images to keep for each unit of that of the images to forget.

    Raises:
        UserError: the weight of the images to forget is zero.
    """
    if not lambda_forget:
        raise UserError("--lambda-forget 0: must be above 0 with --target stand_in")
    return lambda_preserve / lambda_forget


def fit_stand_in(
    concepts: Sequence[Mapping[str, StandInRows]],
    rank: int,
    preserve: float,
    rounds: int = ROUNDS,
    progress: Callable[[int], None] = lambda _: None,
) -> Result:
    """The edit of one or several concepts, over all projectors together.

    Args:
        concepts: for each concept the rows of each adapted Linear, by its name.
        rank: largest rank of each change of a weight, for each concept.
        preserve: λ, the weight of the images to keep against those to forget.
        rounds: number of times that the fitted outputs are moved to the stand-in's covariance.
        progress: called with the number of rounds done.

    Returns:
        The adapter. Row 0 of its history is no change, row 1 the adapter: the root mean square of
        the distance to the target (forget) and of the change (preserve) of image means, over all
        projectors and concepts, and the norm of the change of the weights.
    """
    with threads(max(one.weight.shape[1] for one in concepts[0].values())):
        return _fit(concepts, rank, preserve, rounds, progress)


def _fit(
    concepts: Sequence[Mapping[str, StandInRows]],
    rank: int,
    preserve: float,
    rounds: int,
    progress: Callable[[int], None],
) -> Result:
    begun, names = time.perf_counter(), [*concepts[0]]
    ridges = {name: Ridge([one[name] for one in concepts], preserve) for name in names}
    goals = [
        {name: with_ones(one[name].goal) @ ridges[name].b for name in names} for one in concepts
    ]
    start = missed(ridges, goals, {name: np.zeros_like(ridges[name].b) for name in names})
    cs = {}
    for name, ridge in ridges.items():
        first = [
            (tokens.matched - tokens.forget) @ ridge.w if tokens else None
            for tokens in ridge.tokens
        ]
        cs[name] = ridge.moments([goal[name] for goal in goals], first)
    of_means = [
        JointTransport(
            side_by_side([ridges[name].own[number] for name in names]),
            side_by_side([with_ones(one[name].stand_in) @ ridges[name].b for name in names]),
        )
        for number, one in enumerate(concepts)
    ]
    of_tokens = {
        name: [TokenTransport(tokens, ridge.w) if tokens else None for tokens in ridge.tokens]
        for name, ridge in ridges.items()
    }
    for done in range(rounds):
        changes = {name: ridge.change(cs[name]) for name, ridge in ridges.items()}
        goals = []
        for number, transport_of in enumerate(of_means):
            fitted = [
                ridge.own[number] + ridge.x[number] @ changes[name]
                for name, ridge in ridges.items()
            ]
            ends = np.cumsum([one.shape[1] for one in fitted])[:-1]
            moved = np.split(transport_of(side_by_side(fitted)), ends, axis=1)
            goals.append(dict(zip(names, moved, strict=True)))
        for name, ridge in ridges.items():
            tokens = [one(changes[name][:-1]) if one else None for one in of_tokens[name]]
            cs[name] = ridge.moments([goal[name] for goal in goals], tokens)
        progress(done + 1)
    pairs = {name: ridge.pair(cs[name], rank * len(concepts)) for name, ridge in ridges.items()}
    used = max(len(pair.a) for pair in pairs.values())
    whole = {name: with_bias(pair) for name, pair in pairs.items()}
    left = np.sqrt([start, missed(ridges, goals, whole)])
    padding = {name: padded(pair, used) for name, pair in pairs.items()}
    adapter = LoraAdapter(padding, float(used), used)
    terms = np.array([[left[0], 0.0, 0.0], [left[1], *sizes(concepts[0], adapter)]])
    return Result(
        adapter,
        history_of(terms, 0),
        1,
        None,
        {"total": time.perf_counter() - begun},
    )


def sizes(rows: Mapping[str, StandInRows], adapter: LoraAdapter) -> tuple[float, float]:
    """Root mean square of the change of the images to keep, and the norm of the weights' change.

    Over all projectors; `adapter` has the scale 1.
    """
    kept = weight = 0.0
    for name, pair in adapter.pairs.items():
        change = with_bias(pair)
        kept += float(np.sum((rows[name].preserve @ change) * change))
        weight += float(np.sum(change[:-1] ** 2))
    return kept**0.5, weight**0.5


def missed(
    ridges: Mapping[str, Ridge],
    goals: Sequence[Mapping[str, Matrix]],
    changes: Mapping[str, Matrix],
) -> float:
    """Mean squared distance of image means to their goals, summed over projectors and concepts."""
    return sum(
        mean_square(goal[name] - ridge.own[number] - ridge.x[number] @ changes[name])
        for name, ridge in ridges.items()
        for number, goal in enumerate(goals)
    )


def mean_square(rows: Matrix) -> float:
    """Mean of the squared norms of the rows."""
    return float(np.sum(rows**2) / len(rows))


def side_by_side(outputs: Sequence[Matrix]) -> Matrix:
    return np.concatenate(outputs, axis=1)


def with_bias(pair: LoraPair) -> Matrix:
    """M [D + 1, E] of a pair with scale 1."""
    assert pair.bias is not None
    return np.concatenate([pair.a.T @ pair.b.T, pair.bias[None]]).astype(np.float64)


def padded(pair: LoraPair, rank: int) -> LoraPair:
    """The same change with more rows of A and columns of B, which are zero."""
    more = rank - len(pair.a)
    return LoraPair(
        np.pad(pair.a, ((0, more), (0, 0))), np.pad(pair.b, ((0, 0), (0, more))), pair.bias
    )


class JointTransport:
    """Moves mean outputs to the mean and covariance of the stand-in's, over all projectors."""

    def __init__(self, forget: Matrix, stand_in: Matrix) -> None:
        """Both [images, outputs of all projectors]."""
        self.mean = stand_in.mean(axis=0)
        centred = [side - side.mean(axis=0) for side in (forget, stand_in)]
        self.basis = principal(np.concatenate(centred))
        inside = centred[1] @ self.basis
        self.root = square_root(inside.T @ inside / len(inside))

    def __call__(self, fitted: Matrix) -> Matrix:
        centred = fitted - fitted.mean(axis=0)
        inside = centred @ self.basis
        moved = inside @ transport(inside.T @ inside / len(inside), self.root)
        return np.asarray(self.mean + centred + (moved - inside) @ self.basis.T)


class TokenTransport:
    """Moves the token deviations of one projector to the covariance of the stand-in's."""

    def __init__(self, tokens: TokenMoments, w: Matrix) -> None:
        self.forget = tokens.forget
        self.basis = leading(w.T @ ((tokens.forget + tokens.stand_in) @ w))
        # In the basis, the original outputs and their products with the forget tokens.
        self.w = w @ self.basis
        self.own = tokens.forget @ self.w
        self.root = square_root(self.w.T @ (tokens.stand_in @ self.w))

    def __call__(self, change: Matrix) -> Matrix:
        """r_fᵀ (Θ − r_f W) / N_f after the change M of the weight."""
        moved = self.forget @ change
        inside = self.own + moved @ self.basis
        covariance = (self.w + change @ self.basis).T @ inside
        further = inside @ transport(covariance, self.root) - inside
        return np.asarray(moved + further @ self.basis.T)


def principal(rows: Matrix) -> Matrix:
    """An orthonormal basis [columns, k] of at most COMPONENTS principal components of the rows.

    At real widths a covariance has more rows than can be decomposed in every round; it is moved in
    these components, and stays as it is in the others.
    """
    if len(rows) >= rows.shape[1] or rows.shape[1] <= COMPONENTS:
        return leading(rows.T @ rows)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > NOTHING * values[-1]
    kept[:-COMPONENTS] = False
    return np.asarray(rows.T @ (vectors[:, kept] / np.sqrt(values[kept])))


def leading(covariance: Matrix) -> Matrix:
    """Its COMPONENTS leading eigenvectors, or the whole space if that is not larger."""
    size = len(covariance)
    if size <= COMPONENTS:
        return np.eye(size)
    # All at once: LAPACK takes longer for so many chosen ones.
    return np.linalg.eigh(covariance)[1][:, size - COMPONENTS :]


def square_root(goal: Matrix) -> Matrix:
    """G^½ of a covariance G, shrunk towards the identity of the same trace."""
    values, vectors = np.linalg.eigh(towards_identity(goal, SHRINKAGE))
    return np.asarray((vectors * np.sqrt(values)) @ vectors.T)


def transport(start: Matrix, root: Matrix) -> Matrix:
    """The symmetric map A of Gaussian optimal transport, with A S A = G for covariances S and G.

    A = G^½ (G^½ S G^½)^-½ G^½ (source: Peyré and Cuturi 2019, "Computational Optimal Transport",
    arXiv:1803.00567, section 2.6, with S and G exchanged in A⁻¹), S shrunk as G is.

    Args:
        start: S.
        root: the `square_root` of G.
    """
    if not (np.trace(start) and np.trace(root)):
        # One image, or copies of it, have no spread that could be moved.
        return np.eye(len(start))
    values, vectors = np.linalg.eigh(root @ towards_identity(start, SHRINKAGE) @ root)
    half = root @ (vectors / values**0.25)
    return np.asarray(half @ half.T)


def with_ones(x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n wide"]:
    return np.column_stack([x, np.ones(len(x))]).astype(np.float64)
