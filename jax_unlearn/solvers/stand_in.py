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
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular

from jax_unlearn.features.stand_in import TokenMoments
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.stand_in import StandInRows
from jax_unlearn.runtime.errors import UserError
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
# Share of the largest eigenvalue below which one is rounding.
NOTHING = 1e-12

Matrix = Float64[np.ndarray, "_ _"]


class Ridge:
    """The ridge regression of one projector; its factor does not depend on the targets."""

    def __init__(self, rows: StandInRows, preserve: float) -> None:
        """`preserve`: the weight λ of the images to keep."""
        self.x = with_ones(rows.forget)
        self.w = rows.weight.T.astype(np.float64)
        self.b = np.concatenate([self.w, rows.bias[None].astype(np.float64)])
        self.own = self.x @ self.b
        self.tokens = rows.tokens
        h = self.x.T @ self.x / len(self.x) + preserve * rows.preserve
        if rows.tokens:
            h[:-1, :-1] += TOKENS * (rows.tokens.forget + preserve * rows.tokens.preserve)
        h[np.diag_indices(len(h))] += RIDGE * np.trace(h) / len(h)
        self.factor = cho_factor(h, lower=True)

    def moments(self, targets: Matrix, tokens: Matrix | None) -> Matrix:
        """C, from the targets T and the product r_fᵀ (Θ − r_f W) / N_f."""
        c = self.x.T @ (targets - self.own) / len(self.x)
        if tokens is not None:
            c[:-1] += TOKENS * tokens
        return np.asarray(c)

    def change(self, c: Matrix) -> Matrix:
        """M of full rank."""
        return np.asarray(cho_solve(self.factor, c))

    def pair(self, c: Matrix, rank: int) -> LoraPair:
        """M of the given rank, as factors for alpha = rank."""
        lower = np.tril(self.factor[0])
        u, s, v = np.linalg.svd(solve_triangular(lower, c, lower=True), full_matrices=False)
        rank = min(rank, len(s))
        left = solve_triangular(lower, u[:, :rank], lower=True, trans=1)
        b = v[:rank].T * s[:rank]
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
    """The edit of one or several concepts.

    Each concept is solved on the original model, over all projectors together, and the changes are
    added up, so that their order does not matter.

    Args:
        concepts: for each concept the rows of each adapted Linear, by its name.
        rank: largest rank of each change of a weight, for each concept.
        preserve: λ, the weight of the images to keep against those to forget.
        rounds: number of times that the fitted outputs are moved to the stand-in's covariance.
        progress: called with the number of rounds done, over all concepts.

    Returns:
        The adapter. Row 0 of its history is no change, row 1 the adapter: the root mean square of
        the distance to the target (forget) and of the change (preserve) of image means, over all
        projectors and concepts, and the norm of the change of the weights.
    """
    begun, solved = time.perf_counter(), []
    for number, projectors in enumerate(concepts):
        rounds_before = partial(lambda before, done: progress(before + done), number * rounds)
        solved.append(solve_concept(projectors, rank, preserve, rounds, rounds_before))
    pairs = {name: summed([one.pairs[name] for one in solved]) for name in concepts[0]}
    used = max(len(pair.a) for pair in pairs.values())
    terms = np.sqrt(np.sum([one.terms for one in solved], axis=0))
    terms[:, 2] = [0.0, np.sqrt(sum(np.sum((p.b @ p.a) ** 2) for p in pairs.values()))]
    return Result(
        LoraAdapter({name: padded(pair, used) for name, pair in pairs.items()}, float(used), used),
        history_of(terms, 0),
        1,
        None,
        {"total": time.perf_counter() - begun},
    )


@dataclass(frozen=True)
class Solved:
    """The change for one concept; terms [2, 3]: squares of the history's terms."""

    pairs: dict[str, LoraPair]
    terms: Float64[np.ndarray, "2 terms"]


def solve_concept(
    projectors: Mapping[str, StandInRows],
    rank: int,
    preserve: float,
    rounds: int,
    progress: Callable[[int], None],
) -> Solved:
    ridges = {name: Ridge(rows, preserve) for name, rows in projectors.items()}
    targets = {name: with_ones(rows.goal) @ ridges[name].b for name, rows in projectors.items()}
    start = sum(mean_square(targets[name] - ridge.own) for name, ridge in ridges.items())
    cs = {}
    for name, ridge in ridges.items():
        tokens = ridge.tokens
        first = (tokens.matched - tokens.forget) @ ridge.w if tokens else None
        cs[name] = ridge.moments(targets[name], first)
    of_means = JointTransport(
        side_by_side([ridge.own for ridge in ridges.values()]),
        side_by_side([with_ones(r.stand_in) @ ridges[n].b for n, r in projectors.items()]),
    )
    of_tokens = {
        name: TokenTransport(ridge.tokens, ridge.w)
        for name, ridge in ridges.items()
        if ridge.tokens
    }
    for done in range(rounds):
        changes = {name: ridge.change(cs[name]) for name, ridge in ridges.items()}
        fitted = [ridge.own + ridge.x @ changes[name] for name, ridge in ridges.items()]
        ends = np.cumsum([one.shape[1] for one in fitted])[:-1]
        moved = np.split(of_means(side_by_side(fitted)), ends, axis=1)
        targets = dict(zip(ridges, moved, strict=True))
        for name, ridge in ridges.items():
            of_round = of_tokens[name](changes[name][:-1]) if name in of_tokens else None
            cs[name] = ridge.moments(targets[name], of_round)
        progress(done + 1)
    pairs = {name: ridge.pair(cs[name], rank) for name, ridge in ridges.items()}
    missed = kept = 0.0
    for name, ridge in ridges.items():
        change = with_bias(pairs[name])
        missed += mean_square(targets[name] - ridge.own - ridge.x @ change)
        kept += float(np.sum((projectors[name].preserve @ change) * change))
    return Solved(pairs, np.array([[start, 0.0, 0.0], [missed, kept, 0.0]]))


def mean_square(rows: Matrix) -> float:
    """Mean of the squared norms of the rows."""
    return float(np.sum(rows**2) / len(rows))


def side_by_side(outputs: Sequence[Matrix]) -> Matrix:
    return np.concatenate(outputs, axis=1)


def with_bias(pair: LoraPair) -> Matrix:
    """M [D + 1, E] of a pair with scale 1."""
    assert pair.bias is not None
    return np.concatenate([pair.a.T @ pair.b.T, pair.bias[None]]).astype(np.float64)


def summed(pairs: Sequence[LoraPair]) -> LoraPair:
    """The sum of several changes; its rank is the sum of their ranks."""
    return LoraPair(
        np.concatenate([pair.a for pair in pairs]),
        np.concatenate([pair.b for pair in pairs], axis=1),
        sum(pair.bias for pair in pairs),  # type: ignore[arg-type,misc]
    )


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
        self.goal = inside.T @ inside / len(inside)

    def __call__(self, fitted: Matrix) -> Matrix:
        centred = fitted - fitted.mean(axis=0)
        inside = centred @ self.basis
        moved = inside @ transport(inside.T @ inside / len(inside), self.goal)
        return np.asarray(self.mean + centred + (moved - inside) @ self.basis.T)


class TokenTransport:
    """Moves the token deviations of one projector to the covariance of the stand-in's."""

    def __init__(self, tokens: TokenMoments, w: Matrix) -> None:
        self.forget, self.w = tokens.forget, w
        sides = [w.T @ side @ w for side in (tokens.forget, tokens.stand_in)]
        self.basis = leading(sides[0] + sides[1])
        self.goal = self.basis.T @ sides[1] @ self.basis

    def __call__(self, change: Matrix) -> Matrix:
        """r_fᵀ (Θ − r_f W) / N_f after the change M of the weight."""
        moved = self.forget @ change
        whole = self.w + change
        inside = self.forget @ (whole @ self.basis)
        own = (whole @ self.basis).T @ inside
        further = inside @ transport(own, self.goal) - inside
        return np.asarray(moved + further @ self.basis.T)


def principal(rows: Matrix) -> Matrix:
    """An orthonormal basis [columns, k] of at most COMPONENTS principal components of the rows.

    At real widths a covariance has more rows than can be decomposed in every round; it is moved in
    these components, and stays as it is in the others.
    """
    if len(rows) >= rows.shape[1] or rows.shape[1] <= COMPONENTS:
        return leading(rows.T @ rows)
    values, vectors = eigh(rows @ rows.T)
    kept = values > NOTHING * values[-1]
    kept[:-COMPONENTS] = False
    return np.asarray(rows.T @ (vectors[:, kept] / np.sqrt(values[kept])))


def leading(covariance: Matrix) -> Matrix:
    """Its COMPONENTS leading eigenvectors, or the whole space if that is not larger."""
    size = len(covariance)
    if size <= COMPONENTS:
        return np.eye(size)
    return np.asarray(eigh(covariance, subset_by_index=(size - COMPONENTS, size - 1))[1])


def transport(start: Matrix, goal: Matrix) -> Matrix:
    """The symmetric map A of Gaussian optimal transport, with A S A = G for covariances S and G.

    A = S^-½ (S^½ G S^½)^½ S^-½ (source: Peyré and Cuturi 2019, "Computational Optimal Transport",
    arXiv:1803.00567, section 2.6), both shrunk towards the identity of the same trace.
    """
    s, g = (shrunk(one) for one in (start, goal))
    values, vectors = eigh(s)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    values, vectors = eigh(root @ g @ root)
    middle = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return np.asarray(inverse @ middle @ inverse)


def shrunk(covariance: Matrix) -> Matrix:
    level = np.trace(covariance) / len(covariance)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(len(covariance))


def with_ones(x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n wide"]:
    return np.column_stack([x, np.ones(len(x))]).astype(np.float64)
