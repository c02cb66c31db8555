"""Match each image to forget with a stand-in image, by everything except the class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped
from scipy.linalg import eigh

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.features.stand_in import Counterpart, StandIn, TokenMoments
from jax_unlearn.features.token_sample import by_image, deviations, having_tokens
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.objective.counterparts import words_of

# Principal components of the outputs that are compared.
CONTEXT = 40
# Components are scaled by (eigenvalue + FLOOR · the largest) ** −FLATTEN, so that those of large
# variance do not decide alone, and those of hardly any do not decide at all.
FLOOR, FLATTEN = 0.02, 0.3
# Share of the largest eigenvalue below which one is rounding.
NOTHING = 1e-12
# How many times more often than on average one stand-in image may be used.
REUSE = 2

Groups = Shaped[np.ndarray, " _"]
Outputs = Sequence[Float[np.ndarray, "_ _"]]


@dataclass(frozen=True)
class StandInRows:
    """What the edit needs of one projector's last Linear, for one concept.

    Attributes:
        weight: W [E, D].
        bias: b [E].
        forget: [n_f, D] means of the images to forget.
        goal: [n_f, D] means of the stand-in image matched to each of them.
        stand_in: [n_g, D] means of all stand-in images.
        preserve: [D + 1, D + 1] Gram matrix of [x 1] of the means of the images to keep, divided by
            their number.
        preserve_rows: their number.
        tokens: moments of the tokens; None if samples have one row each.
    """

    weight: Float[np.ndarray, "e d"]
    bias: Float[np.ndarray, " e"]
    forget: Float[np.ndarray, "n_f d"]
    goal: Float[np.ndarray, "n_f d"]
    stand_in: Float[np.ndarray, "n_g d"]
    preserve: Float64[np.ndarray, "wide wide"]
    preserve_rows: int
    tokens: TokenMoments | None


def preserve_grams(
    extracted: Extracted, adapted: Sequence[str]
) -> dict[str, Float64[np.ndarray, "wide wide"]]:
    """For each adapted Linear the Gram matrix of [x 1] of the images to keep, by their number."""
    found = {}
    for name in adapted:
        (preserve,) = extracted.train.preserve.statistics[name]
        found[name] = preserve.gram_with_ones() / preserve.count
    return found


def stand_in_rows(
    extracted: Extracted, stand_in: StandIn, kept: Mapping[str, Float64[np.ndarray, "wide wide"]]
) -> dict[str, StandInRows]:
    """The rows of each adapted Linear for one concept, by the Linear's name.

    `kept`: of `preserve_grams`, which all concepts share.
    """
    train, found = extracted.train, {}
    for linear in extracted.linears:
        if linear.name not in kept:
            continue
        (preserve,) = train.preserve.statistics[linear.name]
        means = stand_in.means[linear.name]
        found[linear.name] = StandInRows(
            linear.weight,
            linear.bias,
            train.forget.taps[linear.name].x[stand_in.forget],
            means[stand_in.match],
            means,
            kept[linear.name],
            preserve.count,
            stand_in.tokens.get(linear.name),
        )
    return found


def stand_in_of(
    linears: Sequence[FrozenLinear],
    forget: SampleFeatures,
    chosen: Int[np.ndarray, " n_f"],
    stand_in: SampleFeatures,
    pair: Counterpart,
    preserve: SampleFeatures | None = None,
) -> StandIn:
    """Match the images and sum the moments of their tokens.

    Args:
        linears: the last Linear of each projector.
        forget: features of all images to forget, of which every one has sampled tokens if
            `preserve` is given.
        chosen: the images of one concept among them.
        stand_in: features of the stand-in images.
        pair: the concept and its counterpart.
        preserve: features of images to keep that have sampled tokens; None if samples have one row
            each.
    """
    names = [linear.name for linear in linears]
    own = {name: forget.taps[name].x[chosen] for name in names}
    theirs = {name: stand_in.taps[name].x for name in names}
    outputs = [[one.output(x[one.name]) for one in linears] for x in (own, theirs)]
    words = other_words(pair, forget.labels[chosen], stand_in.labels)
    matched = match(outputs[0], outputs[1], *words)
    tokens = {}
    for name in names if preserve else ():
        f = by_image(forget.tokens[name])[chosen]
        g = by_image(stand_in.tokens[name])
        r_f, r_g = deviations(f, own[name]), deviations(g, theirs[name])
        goal = deviations(g[matched], theirs[name][matched])
        assert preserve is not None
        sampled = preserve.tokens[name]
        kept = preserve.taps[name].x[having_tokens(sampled)]
        r_p = deviations(by_image(sampled), kept)
        tokens[name] = TokenMoments.of(r_f, r_g, goal, r_p)
    return StandIn(np.asarray(chosen), matched, theirs, tokens)


def other_words(
    pair: Counterpart, forget: np.ndarray, stand_in: np.ndarray
) -> tuple[Groups, Groups]:
    """The other words of each image's class: "red" of a red triangle, if triangles are forgotten.

    Args:
        pair: the concept and its counterpart.
        forget: classes of the images to forget.
        stand_in: classes of the stand-in images.

    Returns:
        The words of both sides; no words at all, unless those of each class to forget are also
        those of a stand-in class.
    """
    both = [
        np.array([" ".join(sorted(words_of(str(label)) - words_of(name))) for label in labels])
        for labels, name in ((forget, pair.concept), (stand_in, pair.name))
    ]
    if not set(both[0]) <= set(both[1]):
        both = [np.full(len(labels), "") for labels in both]
    return both[0], both[1]


def match(
    forget: Outputs,
    stand_in: Outputs,
    forget_groups: Groups | None = None,
    stand_in_groups: Groups | None = None,
) -> Int[np.ndarray, " n_f"]:
    """Index of the stand-in image matched to each image to forget.

    The outputs of all projectors are compared after the mean of the own side is subtracted, since
    otherwise images would be matched by what distinguishes the classes. The assignment minimises
    the sum of squared distances; an image may be used up to REUSE times as often as on average in
    its group.

    A model may embed each class at a place of its own, so that the red ones of two shapes have
    nothing in common. So images are matched within groups whose names agree, if there are some, and
    the mean of the own group is subtracted.

    Args:
        forget: [n_f, E] original mean outputs of the images to forget, for each projector.
        stand_in: [n_g, E] those of the stand-in images.
        forget_groups: [n_f] group of each image to forget; by default all are in one.
        stand_in_groups: [n_g] group of each stand-in image.
    """
    # Here, because it takes a tenth of a second that other targets need not wait for.
    from scipy.optimize import linear_sum_assignment

    counts = len(forget[0]), len(stand_in[0])
    groups = [
        np.zeros(count, int) if own is None else own
        for count, own in zip(counts, (forget_groups, stand_in_groups), strict=True)
    ]
    f, g = context(forget, stand_in, *groups)
    distances = (f**2).sum(axis=1)[:, None] + (g**2).sum(axis=1) - 2 * f @ g.T
    found = np.empty(counts[0], int)
    for group in np.unique(groups[0]):
        own, theirs = (np.flatnonzero(side == group) for side in groups)
        if not len(theirs):
            theirs = np.arange(counts[1])
        often = REUSE * -(-len(own) // len(theirs))
        rows, columns = linear_sum_assignment(np.tile(distances[np.ix_(own, theirs)], (1, often)))
        found[own[rows]] = theirs[columns % len(theirs)]
    return found


def context(
    forget: Outputs, stand_in: Outputs, forget_groups: Groups, stand_in_groups: Groups
) -> tuple[Float[np.ndarray, "n_f k"], Float[np.ndarray, "n_g k"]]:
    """Both sides' scaled principal components, centred by group of each side."""
    f, g = (
        centred(np.concatenate(side, axis=1).astype(np.float64), groups)
        for side, groups in ((forget, forget_groups), (stand_in, stand_in_groups))
    )
    # Each side counts half, whatever its number of images.
    both = np.concatenate([f / np.sqrt(2 * len(f)), g / np.sqrt(2 * len(g))])
    values, components = largest_components(both)
    if not len(values):
        # All images of a side are equal, and any match is as good as another.
        return np.zeros((len(f), 1)), np.zeros((len(g), 1))
    scale = components * (values + FLOOR * values[-1]) ** -FLATTEN
    return f @ scale, g @ scale


def largest_components(
    rows: Float64[np.ndarray, "n e"],
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "e k"]]:
    """Eigenvalues and eigenvectors of XᵀX: the CONTEXT largest that are not rounding, ascending.

    From the smaller one of XᵀX and XXᵀ, since an SVD of X takes five times as long.
    """
    wide = rows.shape[1] > len(rows)
    gram = rows @ rows.T if wide else rows.T @ rows
    size = len(gram)
    values, vectors = eigh(gram, subset_by_index=(max(0, size - CONTEXT), size - 1))
    kept = values > NOTHING * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return values, rows.T @ (vectors / np.sqrt(values)) if wide else vectors


def centred(rows: Float[np.ndarray, "n e"], groups: Groups) -> Float[np.ndarray, "n e"]:
    """The rows minus the mean of their group."""
    found = rows.copy()
    for group in np.unique(groups):
        own = groups == group
        found[own] -= rows[own].mean(axis=0)
    return found
