"""The families that carry a Qwen3 ViT, and what each calls the parts of its Mergers; and CLIP's.

Facts of transformers 5.23. Everywhere else a Linear has the name that `qwen3_vl` gives it, and a
projection of CLIP its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from jax_unlearn.models.clip.model import LINEARS as PROJECTIONS
from jax_unlearn.runtime.errors import UserError

DEEPSTACK = "deepstack_merger_list"
PART = re.compile(rf"(merger|{DEEPSTACK}\.\d+)\.(norm|linear_fc[12])")
# The Linears that an adapter may change.
LINEAR = re.compile(rf"(merger|{DEEPSTACK}\.\d+)\.linear_fc[12]")
# The only part of a Merger that is one Linear.
LAST = "linear_fc2"

# A Merger's parts, as we name them.
PARTS = ("norm", "linear_fc1", "linear_fc2")


@dataclass(frozen=True)
class Family:
    """The names of one model_type.

    live: path of the tower in the HF class that the model_type loads into. keys: prefixes that the
    tower's keys are seen with in files, today's first. deepstack: its list of DeepStack mergers, ""
    if it has none. parts: its names for `PARTS`.
    """

    live: str
    keys: tuple[str, ...]
    deepstack: str = DEEPSTACK
    parts: tuple[str, ...] = PARTS

    @property
    def stems(self) -> tuple[str, ...]:
        """What the tower's keys begin with, behind the prefix."""
        lists = (f"{self.deepstack}.",) if self.deepstack else ()
        return ("patch_embed.", "pos_embed.", "blocks.", "merger.", *lists)

    def own_merger(self, merger: str) -> str:
        """The family's name for a Merger: `merger`, or one of its DeepStack mergers.

        Raises:
            ValueError: the family has no DeepStack.
        """
        if merger != "merger" and not self.deepstack:
            raise ValueError(f"{merger} is not in this tower, which has no DeepStack")
        return merger.replace(DEEPSTACK, self.deepstack)

    @property
    def absent(self) -> str:
        """What to say of a checkpoint without any of the tower's keys."""
        sought = " or ".join(f"{prefix}…" if prefix else "blocks.…" for prefix in self.keys)
        return f"holds no vision tensor ({sought}): text only?"

    def own_linear(self, name: str, single_linear: bool = False) -> str:
        """`own_name` of a Linear that an adapter may change.

        Raises:
            ValueError: it is none of a Merger's, or the family's towers have none of that name.
        """
        if not LINEAR.fullmatch(name):
            raise ValueError(f"{name} is not a Merger's linear_fc1 or linear_fc2")
        return self.own_name(name, single_linear)

    def own_name(self, name: str, single_linear: bool = False) -> str:
        """The family's name for the part of a Merger that we call `name`.

        Args:
            name: `merger.linear_fc2`, `deepstack_merger_list.0.norm`, …
            single_linear: each Merger is one Linear, and its path is the Merger's.

        Raises:
            ValueError: the family's towers have no such part.
        """
        found = PART.fullmatch(name)
        if not found:
            raise ValueError(f"{name} is not a part of a Merger")
        merger, part = found.groups()
        if not single_linear:
            return f"{self.own_merger(merger)}.{self.parts[PARTS.index(part)]}"
        if part != LAST:
            raise ValueError(f"{name} is not in this tower: each Merger is one Linear, {LAST}")
        return self.own_merger(merger)

    def our_name(self, own: str) -> str | None:
        """Our name for the Linear of a Merger that the family calls `own`; None for all else."""
        lists = rf"|{re.escape(self.deepstack)}(\.\d+)" if self.deepstack else "()"
        found = re.fullmatch(rf"(?:merger{lists})(?:\.(.+))?", own)
        if not found:
            return None
        index, part = found.groups()
        merger = DEEPSTACK + index if index else "merger"
        ours = dict(zip(self.parts, PARTS, strict=True)).get(part) if part else LAST
        name = f"{merger}.{ours}"
        return name if LINEAR.fullmatch(name) else None


@dataclass(frozen=True)
class ClipFamily:
    """CLIP, or one side of it with its projection: the projections lie at the top, by our names."""

    projections: tuple[str, ...] = PROJECTIONS
    live: str = ""
    keys: tuple[str, ...] = ("",)

    @property
    def stems(self) -> tuple[str, ...]:
        """What the projections' keys begin with."""
        return tuple(f"{name}." for name in self.projections)

    @property
    def absent(self) -> str:
        """What to say of a checkpoint without any of them."""
        return f"holds no {' or '.join(self.projections)}; save the model with its projections"

    def own_linear(self, name: str, single_linear: bool = False) -> str:
        """The same name.

        Raises:
            ValueError: it is no projection of this model.
        """
        if name not in self.projections:
            raise ValueError(f"{name} is not CLIP's {' or '.join(self.projections)}")
        return name


# Of today's full model, of yesterday's (and of today's without its head), of the tower alone.
VISUAL = ("model.visual.", "visual.", "")

OMNI = ("ln_q", "mlp.0", "mlp.2")

FAMILIES = {
    "qwen3_vl": Family("model.visual.", VISUAL),
    "qwen3_vl_moe": Family("model.visual.", VISUAL),
    # While it loads the files' `thinker.visual.`, transformers renames it.
    "qwen3_omni_moe": Family(
        "thinker.model.visual.", ("thinker.visual.", "thinker.model.visual."), "merger_list", OMNI
    ),
    "qwen3_omni_moe_thinker": Family(
        "model.visual.", ("visual.", "model.visual."), "merger_list", OMNI
    ),
    "qwen3_5": Family("model.visual.", VISUAL, deepstack=""),
    "qwen3_5_moe": Family("model.visual.", VISUAL, deepstack=""),
    "qwen4_exp": Family("model.visual.", VISUAL, deepstack=""),
    # The tower alone.
    "qwen3_vl_vision": Family("", ("",)),
    "qwen3_vl_moe_vision": Family("", ("",)),
    "qwen3_omni_moe_vision_encoder": Family("", ("",), "merger_list", OMNI),
    "qwen3_5_vision": Family("", ("",), deepstack=""),
    "qwen3_5_moe_vision": Family("", ("",), deepstack=""),
    "qwen4_exp_vision": Family("", ("",), deepstack=""),
}

CLIPS = {
    "clip": ClipFamily(),
    "clip_text_model": ClipFamily(PROJECTIONS[:1]),
    "clip_vision_model": ClipFamily(PROJECTIONS[1:]),
}


def family_of(model_type: object, where: str) -> Family:
    """The family of a config's model_type that carries a Qwen3 ViT.

    Raises:
        UserError: begins with `where` and lists the families that we know.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise unknown(model_type, where, "Qwen3 vision tower", FAMILIES)
    return FAMILIES[model_type]


def adaptable_family_of(model_type: object, where: str) -> Family | ClipFamily:
    """The same for all that an adapter can be of."""
    known: dict[str, Family | ClipFamily] = {**FAMILIES, **CLIPS}
    if not isinstance(model_type, str) or model_type not in known:
        raise unknown(model_type, where, "Qwen3 vision tower or CLIP projection", known)
    return known[model_type]


def unknown(model_type: object, where: str, what: str, known: Iterable[str]) -> UserError:
    fault = f"model_type {model_type!r} has no {what} that we know"
    return UserError(f"{where}: {fault}; known: {', '.join(known)}")


def linear_of_live_path(path: str) -> str | None:
    """Our name for the Linear at a path of an HF model of any family.

    None if it is neither a Merger's nor a projection of CLIP.

    The prefixes of files are taken too: they are the paths in other versions of transformers.
    """
    if path in PROJECTIONS:
        return path
    for family in FAMILIES.values():
        for prefix in (family.live, *family.keys):
            name = family.our_name(path.removeprefix(prefix))
            if name and path.startswith(prefix):
                return name
    return None
