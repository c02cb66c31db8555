"""Counterparts of what is forgotten, and the features of images that take its place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from jax_unlearn.features.gram import gram

Rows = Float[np.ndarray, "_ d"]


@dataclass(frozen=True)
class Counterpart:
    """A concept to forget, and the class to keep that it is compared with, or moved onto.

    Attributes:
        concept: the concept in words.
        forget: the classes to forget that show it.
        name: the counterpart in words.
        preserve: its classes; empty if it is a folder of its own, or images without classes.
    """

    concept: str
    forget: tuple[str, ...]
    name: str
    preserve: tuple[str, ...]


@dataclass(frozen=True)
class TokenMoments:
    """Gram matrices of tokens' deviations r from their image's mean at one tap, per token.

    Attributes:
        forget: r_fᵀ r_f / N_f [D, D] of the images to forget.
        stand_in: r_gᵀ r_g / N_g [D, D] of the stand-in images.
        matched: r_fᵀ r_g / N_f [D, D], where r_g is the deviation at the same place of the
            stand-in image that is matched to the image to forget.
        preserve: r_pᵀ r_p / N_p [D, D] of images to keep.
    """

    forget: Float64[np.ndarray, "d d"]
    stand_in: Float64[np.ndarray, "d d"]
    matched: Float64[np.ndarray, "d d"]
    preserve: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, forget: Rows, stand_in: Rows, goal: Rows, preserve: Rows) -> "TokenMoments":
        """The moments of deviations; `goal` has the matched one of each that is to forget."""
        return cls(
            gram(forget) / len(forget),
            gram(stand_in) / len(stand_in),
            forget.T.astype(np.float64) @ goal / len(forget),
            gram(preserve) / len(preserve),
        )


@dataclass(frozen=True)
class StandIn:
    """The images that take the place of those of one concept, and which replaces which.

    Attributes:
        forget: [n_f] the concept's images among the images to forget.
        match: [n_f] index of the stand-in image matched to each of them.
        means: [n_g, D] the stand-in images' means at the last Linear of each projector.
        tokens: moments of the tokens at each of these Linears; empty if samples have one row each.
    """

    forget: Int[np.ndarray, " n_f"]
    match: Int[np.ndarray, " n_f"]
    means: Mapping[str, Float[np.ndarray, "n_g d"]]
    tokens: Mapping[str, TokenMoments]

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays for a file, by name."""
        found = {f"{prefix}.forget": self.forget, f"{prefix}.match": self.match}
        found |= {f"{prefix}.means.{name}": x for name, x in self.means.items()}
        for name, moments in self.tokens.items():
            found |= {f"{prefix}.tokens.{name}.{k}": v for k, v in vars(moments).items()}
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> "StandIn":
        """The inverse of `arrays`."""
        start = f"{prefix}.means."
        names = [key.removeprefix(start) for key in arrays if key.startswith(start)]
        fields = TokenMoments.__dataclass_fields__
        tokens = {
            name: TokenMoments(*(arrays[f"{prefix}.tokens.{name}.{field}"] for field in fields))
            for name in names
            if f"{prefix}.tokens.{name}.forget" in arrays
        }
        means = {name: arrays[start + name] for name in names}
        return cls(arrays[f"{prefix}.forget"], arrays[f"{prefix}.match"], means, tokens)
