"""The closed-form solver: the loss of `train`, minimised by a few ridge regressions of rank r.

With P = Δᵀ, the moments G_f = X_fᵀX_f, C_f = X_fᵀR, e_f = ‖R‖², G_p = X_pᵀX_p, and what the norms
cost, c_f = λ_f, c_p = λ_p (each over the root of its rows for the reduction `mean`) and
c_w = λ_w / |alpha / rank|, the loss of one Linear is

    f(P) = c_f ‖R − X_f P‖ + c_p ‖X_p P‖ + c_w ‖P‖.

‖v‖ = min over η > 0 of ‖v‖²/(2η) + η/2, at η = ‖v‖. With the η's held, and all divided by
c_f/(2η_f), that is a ridge regression, whose minimum of rank r is known (DESIGN.md, section 6):

    H = G_f + a G_p + b I = L Lᵀ    a = c_p η_f / (c_f η_p)    b = c_w η_f / (c_f η_w)
    P = L⁻ᵀ · best rank r of L⁻¹ C_f = H⁻¹ C_f V Vᵀ

Setting the η's to the norms of P and repeating majorises and minimises: f never rises. That may
take a hundred factors of a D_in × D_in matrix. But P depends on a and b alone, and smoothly: after
each such step the iteration is carried to its end among the changes whose left factor lies in the
span of H⁻¹C_f V and its derivatives by a and b (H⁻¹G_p and H⁻¹ times it), those of earlier steps
included. There it costs little, and begins with that very step, so that f cannot rise; from two to
four steps do.

In float64 moments ‖R − X_f P‖ below 1e-7 ‖R‖ cannot be told from zero, for two numbers cancel. No η
is taken below that, and an iterate whose loss is not lower is not taken and ends the iteration.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray
from scipy.linalg import LinAlgError, blas, cholesky, eigh
from scipy.optimize import minimize
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from jax_unlearn.errors import UserError
from jax_unlearn.lora import LoraAdapter, LoraPair
from jax_unlearn.objective import LinearProblem, Problem, loss, shapes
from jax_unlearn.statistics import BLOCK, gram
from jax_unlearn.train import Progress, Result, TrainConfig, check, history_of

# The least terms that η's are taken from: of the loss, and for the forget term of no change's.
FLOOR, FIT = 1e-8, 2e-7
# The least b, as a share of H's trace: for a factor to exist; and without a weight term, for the
# change to stay so small that float32 can carry it where the rows do not determine it.
RIDGE, RIDGE_ALONE = 2e-15, 1e-10
# Within a span: at most so many iterations, to this share of the tolerance.
INNER, INNER_TOLERANCE = 1000, 1e-6
# Starts, as what share each term has: all alike, and near no change if that is all it came to.
ALIKE, SMALL = np.ones(3), np.array([1.0, 0.01, 0.01])
# From this size on, a few eigenvectors are found by Lanczos' method.
LANCZOS = 256
# Below this size BLAS' threads cost more than they save, and much more on a busy machine.
ONE_THREAD = 512
# A singular value below this share of the largest is none: float32 would not show it.
NOTHING = 1e-6
# The lower bound: columns that stand in for all, how near it should come, factors spent on that.
SKETCH, SKETCH_TOLERANCE, GAP, LOOKS = 32, 1e-3, 1e-4, 3
# Relative error of a moment, with room.
ROUNDING = 1e-14

Terms = Float64[ndarray, "3"]


class Moments(NamedTuple):
    """G_f [m, m], C_f [m, k], e_f and G_p [m, m] of one Linear."""

    forget: Float64[ndarray, "m m"]
    cross: Float64[ndarray, "m k"]
    square: float
    preserve: Float64[ndarray, "m m"]


class Change(NamedTuple):
    """P = left rightᵀ, left [m, q], right [k, q] with orthonormal columns; its weighted terms."""

    left: Float64[ndarray, "m q"]
    right: Float64[ndarray, "k q"]
    terms: Terms

    @property
    def total(self) -> float:
        return float(self.terms.sum())


@dataclass(frozen=True)
class Reduced:
    """One Linear in no more dimensions than its rows span.

    residual: RᵀR [k, k]. inputs [D_in, m] and outputs [E, k]: orthonormal, None where m = D_in or
    k = E. With P = inputs P' outputsᵀ all norms are those of P'; and the best P is of that form,
    for what another has beyond the spans only adds to its norms.
    """

    moments: Moments
    residual: Float64[ndarray, "k k"]
    inputs: Float64[ndarray, "d_in m"] | None
    outputs: Float64[ndarray, "e k"] | None


class Solved(NamedTuple):
    """The changes of one Linear: first none; none has a higher loss than the one before."""

    changes: list[Change]
    inputs: Float64[ndarray, "d_in m"] | None
    outputs: Float64[ndarray, "e k"] | None
    lower_bound: float
    seconds: Float64[ndarray, "3"]

    def at(self, iteration: int) -> Change:
        return self.changes[min(iteration, len(self.changes) - 1)]


class Ridge:
    """H = G_f + a G_p + b I = L Lᵀ for the η's of a change with these terms."""

    def __init__(
        self, moments: Moments, costs: Terms, terms: Terms, alone: float = RIDGE_ALONE
    ) -> None:
        floored = _floored(moments, costs, terms)
        self.a, b = (costs[1:] / costs[0]) ** 2 * floored[0] / floored[1:]
        self.trace = float(self.a * moments.preserve.trace() + moments.forget.trace())
        self.b = max(b, (RIDGE if costs[2] > 0 else alone) * self.trace)
        while True:
            h = self.a * moments.preserve
            h += moments.forget
            h[np.diag_indices_from(h)] += self.b
            try:
                # Symmetric, so that its transpose is H in LAPACK's order: no copy.
                self.lower = cholesky(h.T, lower=True, overwrite_a=True, check_finite=False)
                return
            except LinAlgError:
                if not self.b < self.trace:
                    raise
                self.b *= 10

    def forward(self, x: Float64[ndarray, "m n"]) -> Float64[ndarray, "m n"]:
        """L⁻¹ x."""
        return blas.dtrsm(1.0, self.lower, x, lower=True)

    def backward(self, x: Float64[ndarray, "m n"]) -> Float64[ndarray, "m n"]:
        """L⁻ᵀ x."""
        return blas.dtrsm(1.0, self.lower, x, lower=True, trans_a=True)


def solve(
    problem: Problem,
    config: TrainConfig,
    *,
    held_out: Problem | None = None,
    progress: Progress | None = None,
) -> Result:
    """Minimise the three-term loss over all changes of rank r, without epochs or a step size.

    Args:
        problem: a `LinearProblem` by each Linear's name. Each is solved alone: their losses add up.
        config: rank, alpha, the λ's, reduction, select, seed, and iterations, tolerance and starts.
            The same seed gives the same bytes on the same machine.
        held_out: rows to choose the adapter by, with `select="held_out"`.
        progress: called after each iteration with their number and the terms so far.

    A row of the history is an iteration of all Linears: one that has ended stays as it is. Row 0 is
    no change. Both factors of the adapter have the same singular values; where the change needs
    less than rank r, A has rows of `config.init` and B has zeros, so that Adam could go on.
    `seconds` has the moments of the rows, the iterations, the lower bound, and all.

    Raises:
        UserError: a part that is not linear, `select="held_out"` without held-out rows, settings
            that cannot be meant, or rows that are not finite.
    """
    linears = _check(problem, config)
    if config.select == "held_out" and held_out is None:
        raise UserError("select 'held_out' needs held-out rows to choose by")
    begun = time.perf_counter()
    costs = {name: _costs(linear, config) for name, linear in linears.items()}
    tell = _teller({name: _start(linears[name], costs[name]) for name in linears}, progress)
    solved = {
        name: _solve(linears[name], costs[name], config, partial(tell, name)) for name in linears
    }

    paths, fresh = solved.values(), config.init(problem)
    length = max(len(path.changes) for path in paths)
    terms = np.array([np.sum([path.at(i).terms for path in paths], axis=0) for i in range(length)])
    chosen = length - 1
    if config.select == "held_out" and held_out is not None:
        adapters, weights = (
            (_adapter(solved, fresh, i) for i in range(length)),
            config.loss_weights(),
        )
        chosen = int(np.argmin([float(loss(a, held_out, weights)[0]) for a in adapters]))
    laps = map(float, np.sum([path.seconds for path in paths], axis=0))
    seconds = dict(zip(("statistics", "iterations", "lower_bound"), laps, strict=True))
    seconds["total"] = time.perf_counter() - begun
    bound = sum(path.lower_bound for path in paths)
    return Result(
        _adapter(solved, fresh, chosen), history_of(terms, 0), chosen, None, seconds, bound
    )


def _solve(
    linear: LinearProblem, costs: Terms, config: TrainConfig, tell: Callable[[Terms], None]
) -> Solved:
    laps = [time.perf_counter()]
    reduced = reduce(linear)
    laps.append(time.perf_counter())
    changes = descend(reduced.moments, costs, config, tell)
    laps.append(time.perf_counter())
    # What is left between two equal numbers is rounding.
    bound = min(lower_bound(reduced, costs, changes[-1].right, config.seed), changes[-1].total)
    laps.append(time.perf_counter())
    return Solved(changes, reduced.inputs, reduced.outputs, bound, np.diff(laps))


def reduce(linear: LinearProblem) -> Reduced:
    """The moments of the rows, which are made float64 a block at a time."""
    forget, residual, preserve = map(np.asarray, (linear.forget, linear.residual, linear.preserve))
    inputs = outputs = None
    # Rows nearly as many as columns would cost more to factor than a smaller problem saves.
    if 4 * (len(forget) + len(preserve)) <= 3 * forget.shape[1]:
        inputs, rows = _span(np.concatenate([forget, preserve]))
        forget, preserve = rows[: len(forget)], rows[len(forget) :]
    if len(residual) < residual.shape[1]:
        outputs, residual = _span(residual)
    products = gram(residual)
    moments = Moments(
        gram(forget), _product(forget, residual), float(products.trace()), gram(preserve)
    )
    return Reduced(moments, products, inputs, outputs)


def descend(
    moments: Moments, costs: Terms, config: TrainConfig, tell: Callable[[Terms], None]
) -> list[Change]:
    """No change, and the lowest so far after each iteration, from the best start.

    The first start takes the three terms to be alike; others draw them, over six decades.

    Args:
        costs: c_f, c_p and c_w.
        tell: called with the terms after each iteration.
    """
    (m, k), size = moments.cross.shape, costs[0] * moments.square**0.5
    nothing = Change(np.zeros((m, 0)), np.zeros((k, 0)), np.array([size, 0.0, 0.0]))
    if not size > 0:
        return [nothing]

    def run(shares: Terms) -> list[Change]:
        changes = [nothing]
        steps = refined(moments, costs, config.rank, shares * size, config.tolerance)
        for change in falling(islice(steps, config.iterations), config.tolerance):
            changes.append(_lower(change, changes[-1]))
            tell(changes[-1].terms)
        return changes

    drawn = np.random.default_rng(config.seed).uniform(-3, 3, size=(config.starts - 1, 3))
    with _threads(m):
        best = min(map(run, [ALIKE, *10**drawn]), key=lambda changes: changes[-1].total)
        return run(SMALL) if best[-1] is nothing else best


def falling(changes: Iterable[Change], tolerance: float) -> Iterator[Change]:
    """As long as the loss falls, to zero or up to the first fall by less than `tolerance` of it."""
    last = np.inf
    for change in changes:
        if not change.total < last:
            return
        yield change
        if last - change.total <= tolerance * change.total or change.total == 0:
            return
        last = change.total


def stepwise(moments: Moments, costs: Terms, rank: int, terms: Terms) -> Iterator[Change]:
    """The plain iteration, from the η's of these terms, with longer and longer steps.

    Where a norm goes to zero the terms shrink by nearly the same share each time. So each step is
    repeated in advance, twice as often after each success, on the terms' logarithms; a step that
    does not lower the loss is taken back.
    """
    settled, last, times = terms, np.inf, 1.0
    while True:
        factors = _minimum(moments, rank, Ridge(moments, costs, terms))
        change = Change(*factors, _terms(moments, costs, *factors))
        if times > 1 and not change.total < last:
            terms, times = settled, 1.0
            continue
        yield change
        settled, last = change.terms, change.total
        before, after = (_floored(moments, costs, one) for one in (terms, settled))
        share = np.clip(after / before, 1e-3, 1e3)
        terms, times = settled * share ** (times - 1), min(2 * times, 64.0)


def refined(
    moments: Moments, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """The same, each step carried to the end of the iteration in the span of all so far."""
    span = np.zeros((len(moments.forget), 0))
    while True:
        ridge = Ridge(moments, costs, terms)
        left, _ = _minimum(moments, rank, ridge)
        span = _extended(span, moments, ridge, left)
        outputs, small = _within(moments, span)
        inner = islice(stepwise(small, costs, rank, terms), INNER)
        with _threads(span.shape[1]):
            end = list(falling(inner, INNER_TOLERANCE * tolerance))[-1]
        yield Change(span @ end.left, outputs @ end.right, end.terms)
        terms = end.terms


def lower_bound(reduced: Reduced, costs: Terms, right: Float64[ndarray, "k q"], seed: int) -> float:
    """A value that no change of any rank has a loss below.

    It takes the η's of the best change of full rank, whose problem is convex, and `dual`. η's are
    norms: where there are many columns of R, few replace them in the search, those along `right`
    (orthonormal, where the change is large) and random signs for the others, which keep norms on
    average.
    """
    moments, (m, k) = reduced.moments, reduced.moments.cross.shape
    if not costs[0] * moments.square > 0:
        return 0.0
    if m < ONE_THREAD:
        steps, tolerance = stepwise(moments, costs, k, ALIKE), GAP / 100
    elif k <= SKETCH + right.shape[1]:
        steps, tolerance = refined(moments, costs, k, ALIKE, GAP), GAP
    else:
        few, tolerance = _sketch(reduced, right, seed), SKETCH_TOLERANCE
        steps = refined(few, costs, k, ALIKE, tolerance)
    with _threads(m):
        *_, found = falling(islice(steps, INNER), tolerance)
        terms, bound = found.terms, 0.0
        for _ in range(LOOKS):
            value, terms = dual(moments, costs, terms)
            bound = max(bound, value)
            if terms.sum() - bound <= GAP * terms.sum():
                break
    return bound


def _sketch(reduced: Reduced, right: Float64[ndarray, "k q"], seed: int) -> Moments:
    moments, k = reduced.moments, len(right)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(k, SKETCH))
    signs -= right @ (right.T @ signs)
    columns = np.concatenate([right, signs / SKETCH**0.5], axis=1)
    square = float(np.vdot(columns, reduced.residual @ columns))
    return moments._replace(cross=moments.cross @ columns, square=square)


def dual(moments: Moments, costs: Terms, terms: Terms) -> tuple[float, Terms]:
    """(A lower bound, the terms) of the best P of full rank for the η's of `terms`.

    For any P, f(P) ≥ ⟨U, R⟩ if ‖U‖ ≤ c_f, ‖V‖ ≤ c_p and ‖Z‖ ≤ c_w with Z = X_fᵀU − X_pᵀV. At the
    minimum these are equal for U along R − X_f P and V along X_p P; near it, with the best x, y, z,

        U = x R + y (R − X_f P)    V = (y − z) a X_p P    Z = x C_f + y b P + z a G_p P

    come near by one order more. For H P = C_f, this takes no rows. What rounding may have made of
    the moments is added to the norms' forms in (x, y, z), and taken off the gain. Without a weight
    term Z is not zero but y b P with the least b: the gain is less by what that is with a change
    ten times as large as P.
    """
    ridge = Ridge(moments, costs, terms, RIDGE)
    p = np.ascontiguousarray(ridge.backward(ridge.forward(moments.cross)))
    a, b, square = ridge.a, ridge.b, moments.square
    parts, shares = (moments.cross, p, moments.preserve @ p), np.array([1.0, b, a])
    table = np.array([[np.vdot(one, two) for two in parts] for one in parts])
    fit, size, keep = np.maximum(table[1], 0)
    noise = ROUNDING * square
    rest = a * keep + b * size
    missed = max(square - fit - rest, 0.0)
    u, v = np.zeros((2, 3, 3))
    u[:2, :2] = [[square, missed + rest], [missed + rest, missed + noise]]
    v[1:, 1:] = a * a * keep * np.array([[1.0, -1.0], [-1.0, 1.0]])
    z = table * np.outer(shares, shares)
    z[np.diag_indices(3)] *= 1 + 3 * ROUNDING
    z[1, 1] += (ROUNDING * ridge.trace) ** 2 * size
    spared = noise if costs[2] > 0 else noise + 10 * b * size
    gain = np.array([square, max(missed + rest - spared, 0.0), 0.0])
    return _most(gain, (u, v, z), costs), costs * np.sqrt([missed, keep, size])


def _most(
    gain: Float64[ndarray, "3"], forms: tuple[Float64[ndarray, "3 3"], ...], costs: Terms
) -> float:
    """The most of gain · t, or nearly, where √(tᵀ F t) ≤ c for each form F and its cost c.

    By SciPy's SLSQP from the best t along (0, 1, 0). Where c_w = 0 that is all, and the third form
    does not count: it would be zero but for the least ridge.
    """
    counted = [(form, c) for form, c in zip(forms[: 3 if costs[2] > 0 else 2], costs, strict=False)]
    plain = min(c / form[1, 1] ** 0.5 for form, c in counted if form[1, 1] > 0)
    if not costs[2] > 0 or not gain[1] > 0:
        return float(gain[1] * plain)
    scale = plain * np.array([(forms[0][1, 1] / gain[0]) ** 0.5, 1.0, 1.0])
    scaled = [form * np.outer(scale, scale) / c**2 for form, c in counted if c > 0]
    slope, start = gain * scale / (gain[1] * plain), np.array([0.0, 1.0, 0.0])
    limits = [
        {"type": "ineq", "fun": lambda t, f=f: 1 - t @ f @ t, "jac": lambda t, f=f: -2 * f @ t}
        for f in scaled
    ]
    t = minimize(lambda t: -slope @ t, start, jac=lambda t: -slope, constraints=limits).x
    inside = slope @ t / max(t @ f @ t for f in scaled) ** 0.5
    return float(gain[1] * plain * max(1.0, inside if np.isfinite(inside) else 0.0))


def _minimum(
    moments: Moments, rank: int, ridge: Ridge
) -> tuple[Float64[ndarray, "m q"], Float64[ndarray, "k q"]]:
    """(left, right) of the best P of the rank for the ridge's η's."""
    whitened = ridge.forward(moments.cross)
    right = _leading(whitened, rank)
    return ridge.backward(whitened @ right), right


def _terms(
    moments: Moments, costs: Terms, left: Float64[ndarray, "m q"], right: Float64[ndarray, "k q"]
) -> Terms:
    missed = moments.square - 2 * np.vdot(moments.cross @ right, left)
    squares = [missed + np.vdot(left, moments.forget @ left)]
    squares += [np.vdot(left, moments.preserve @ left), np.vdot(left, left)]
    return costs * np.sqrt(np.maximum(squares, 0))


def _leading(x: Float64[ndarray, "m k"], rank: int) -> Float64[ndarray, "k q"]:
    """The right singular vectors of the largest singular values, orthonormal."""
    k = x.shape[1]
    if rank >= k:
        return np.eye(k)
    squares = x.T @ x
    if k >= LANCZOS and 10 * rank < k:
        try:
            start = np.random.default_rng(0).normal(size=k)
            return eigsh(squares, k=rank, v0=start)[1]
        except ArpackError:
            pass  # It did not converge, as where singular values are alike; what follows does.
    return eigh(squares, subset_by_index=(k - rank, k - 1), check_finite=False)[1]


def _extended(
    span: Float64[ndarray, "m p"],
    moments: Moments,
    ridge: Ridge,
    left: Float64[ndarray, "m q"],
) -> Float64[ndarray, "m s"]:
    """Orthonormal columns: the span, a left factor and its derivatives by a and b."""
    both = np.concatenate([moments.preserve @ left, left], axis=1)
    added = np.concatenate([left, ridge.backward(ridge.forward(both))], axis=1)
    sizes = np.linalg.norm(added, axis=0)
    return np.linalg.qr(np.concatenate([span, added / np.where(sizes > 0, sizes, 1.0)], axis=1))[0]


def _within(
    moments: Moments, span: Float64[ndarray, "m s"]
) -> tuple[Float64[ndarray, "k t"], Moments]:
    """(Outputs, moments) of the changes span P' outputsᵀ: what is outside of these is no use."""
    cross = span.T @ moments.cross
    outputs = np.linalg.qr(cross.T)[0]
    forget, preserve = (span.T @ g @ span for g in (moments.forget, moments.preserve))
    return outputs, Moments(forget, cross @ outputs, moments.square, preserve)


def _threads(size: int) -> AbstractContextManager:
    """One thread for matrices of less than `ONE_THREAD` rows."""
    return _pools().limit(limits=1 if size < ONE_THREAD else None, user_api="blas")


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def _floored(moments: Moments, costs: Terms, terms: Terms) -> Terms:
    forget = max(terms[0], FIT * costs[0] * moments.square**0.5)
    others = np.maximum(terms[1:], FLOOR * (forget + terms[1:].sum()))
    return np.array([forget, *others])


def _lower(change: Change, other: Change) -> Change:
    return change if change.total < other.total else other


def _product(x: Float[ndarray, "n d"], y: Float[ndarray, "n e"]) -> Float64[ndarray, "d e"]:
    """XᵀY."""
    total = np.zeros((x.shape[1], y.shape[1]))
    for first in range(0, len(x), BLOCK):
        one, other = (np.asarray(rows[first : first + BLOCK], np.float64) for rows in (x, y))
        total += one.T @ other
    return total


def _span(rows: Float[ndarray, "n d"]) -> tuple[Float64[ndarray, "d n"], Float64[ndarray, "n n"]]:
    """(Orthonormal columns, the rows in their terms)."""
    basis, upper = np.linalg.qr(rows.T.astype(np.float64))
    return basis, upper.T


def _adapter(solved: Mapping[str, Solved], fresh: LoraAdapter, iteration: int) -> LoraAdapter:
    pairs = {
        name: _pair(linear, linear.at(iteration), fresh.pairs[name], fresh.scale)
        for name, linear in solved.items()
    }
    return LoraAdapter(pairs, alpha=fresh.alpha, rank=fresh.rank)


def _pair(linear: Solved, change: Change, fresh: LoraPair, scale: float) -> LoraPair:
    """Balanced factors of the change: Δ = scale · B A, with the singular values' roots in both."""
    a, b = np.array(fresh.a), np.zeros(fresh.b.shape, np.float32)
    u, sigma, w = np.linalg.svd(change.left, full_matrices=False)
    kept = int(np.sum(sigma > NOTHING * sigma.max(initial=0)))
    roots = np.sqrt(sigma[:kept] / abs(scale))
    left, right = roots * u[:, :kept], np.sign(scale) * roots * (change.right @ w.T[:, :kept])
    a[:kept] = (left if linear.inputs is None else linear.inputs @ left).T
    b[:, :kept] = right if linear.outputs is None else linear.outputs @ right
    return LoraPair(a=a, b=b)


def _check(problem: Problem, config: TrainConfig) -> dict[str, LinearProblem]:
    """The parts, if they and the settings are what the closed form can do."""
    check(config, shapes(problem))
    for name in ("iterations", "tolerance", "lambda_forget", "lambda_preserve", "lambda_weight"):
        if not 0 <= (value := getattr(config, name)) < np.inf:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value}: must be finite and not negative")
    if config.starts < 1:
        raise UserError(f"--starts {config.starts}: must be at least 1")
    if config.alpha == 0:
        raise UserError("--alpha 0: no change has a scale of zero")
    linears = {name: part for name, part in problem.items() if isinstance(part, LinearProblem)}
    if others := [name for name in problem if name not in linears]:
        raise UserError(
            f"{others[0]}: the closed form is for linear_fc2 (a GELU lies between linear_fc1 and "
            "the output); use --optimizer adam"
        )
    return linears


def _costs(linear: LinearProblem, config: TrainConfig) -> Terms:
    """c_f, c_p and c_w."""
    scale = 1.0 if config.alpha is None else config.alpha / config.rank
    costs = [config.lambda_forget, config.lambda_preserve, config.lambda_weight / abs(scale)]
    if config.reduction == "mean":
        rows = float(linear.forget_rows), float(linear.preserve_rows), 1.0
        # Without rows the term is zero whatever it costs.
        return costs / np.sqrt(np.maximum(rows, 1.0))
    return np.array(costs)


def _start(linear: LinearProblem, costs: Terms) -> Terms:
    """The terms of no change.

    Raises:
        UserError: rows that are not finite.
    """
    forget, residual, preserve = map(np.asarray, (linear.forget, linear.residual, linear.preserve))
    square = np.einsum("ij,ij->", residual, residual, dtype=np.float64)
    if not np.isfinite([square, *(x.sum(dtype=np.float64) for x in (forget, preserve))]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    return np.array([costs[0] * square**0.5, 0.0, 0.0])


def _teller(now: dict[str, Terms], progress: Progress | None) -> Callable[[str, Terms], None]:
    """Tells the progress of one Linear after another: the lowest terms, those to come at first."""
    done = count(1)

    def tell(name: str, terms: Terms) -> None:
        if terms.sum() < now[name].sum():
            now[name] = terms
        if progress:
            number = next(done)
            progress(number, history_of(np.sum([*now.values()], axis=0)[None], number)[0])

    return tell
