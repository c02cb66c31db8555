"""Model families with a Qwen3 ViT, with their names for the parts of Mergers; and CLIP.

Names are those of transformers 5.23. Everywhere else Linears have their canonical names, which are
those of `qwen3_vl` and of CLIP's projections.
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
# The canonical name of the Linear of a Merger that is a single Linear.
LAST = "linear_fc2"
# A tensor that every tower has.
ANCHOR = "patch_embed.proj.weight"
# Canonical names of a Merger's parts.
PARTS = ("norm", "linear_fc1", "linear_fc2")


@dataclass(frozen=True)
class Family:
    """The names that one model_type uses.

    live: path of the tower in the HF class that the model_type loads into. keys: prefixes of the
    tower's keys in files, the current one first. deepstack: name of the list of DeepStack mergers,
    "" if there is none. parts: names of the canonical `PARTS`.
    """

    live: str
    keys: tuple[str, ...]
    deepstack: str = DEEPSTACK
    parts: tuple[str, ...] = PARTS

    @property
    def stems(self) -> tuple[str, ...]:
        """Beginnings of the tower's keys, after the prefix."""
        lists = (f"{self.deepstack}.",) if self.deepstack else ()
        return ("patch_embed.", "pos_embed.", "blocks.", "merger.", *lists)

    def family_merger(self, merger: str) -> str:
        """The family's name of a Merger with this canonical name.

        Raises:
            ValueError: the family has no DeepStack.
        """
        if merger != "merger" and not self.deepstack:
            raise ValueError(f"{merger} is not in this tower, which has no DeepStack")
        return merger.replace(DEEPSTACK, self.deepstack)

    def absent(self, keys: Iterable[str]) -> str:
        """Fault of a checkpoint without any of the tower's keys."""
        if prefix := next((k.removesuffix(ANCHOR) for k in keys if k.endswith(ANCHOR)), None):
            known = [one for one in self.keys if prefix.endswith(one)]
            wrapper = prefix.removesuffix(known[0]) if known else prefix
            return (
                f"its tower's keys begin with {prefix!r}, which transformers does not load either: "
                f"a wrapper left {wrapper!r}; save the model inside it, or rename the keys"
            )
        sought = " or ".join(f"{prefix}…" if prefix else "blocks.…" for prefix in self.keys)
        return f"holds no vision tensor ({sought}): text only?"

    def family_linear(self, name: str, single_linear: bool = False) -> str:
        """`family_name` of a Linear that an adapter may change.

        Raises:
            ValueError: it is not a Merger's linear_fc1 or linear_fc2, or the family has no such
                Linear.
        """
        if not LINEAR.fullmatch(name):
            raise ValueError(f"{name} is not a Merger's linear_fc1 or linear_fc2")
        return self.family_name(name, single_linear)

    def family_name(self, name: str, single_linear: bool = False) -> str:
        """The family's name of a part of a Merger.

        Args:
            name: canonical name, such as `merger.linear_fc2` or `deepstack_merger_list.0.norm`.
            single_linear: each Merger is a single Linear, at the Merger's path.

        Raises:
            ValueError: the family's towers have no such part.
        """
        found = PART.fullmatch(name)
        if not found:
            raise ValueError(f"{name} is not a part of a Merger")
        merger, part = found.groups()
        if not single_linear:
            return f"{self.family_merger(merger)}.{self.parts[PARTS.index(part)]}"
        if part != LAST:
            raise ValueError(f"{name} is not in this tower: each Merger is one Linear, {LAST}")
        return self.family_merger(merger)

    def canonical_name(self, family_name: str) -> str | None:
        """The canonical name of a Merger's Linear; None for any other part of the model."""
        lists = rf"|{re.escape(self.deepstack)}(\.\d+)" if self.deepstack else "()"
        found = re.fullmatch(rf"(?:merger{lists})(?:\.(.+))?", family_name)
        if not found:
            return None
        index, part = found.groups()
        merger = DEEPSTACK + index if index else "merger"
        canonical = dict(zip(self.parts, PARTS, strict=True)).get(part) if part else LAST
        name = f"{merger}.{canonical}"
        return name if LINEAR.fullmatch(name) else None


@dataclass(frozen=True)
class ClipFamily:
    """CLIP, or one of its encoders with its projection; names are the canonical ones."""

    projections: tuple[str, ...] = PROJECTIONS
    live: str = ""
    keys: tuple[str, ...] = ("",)

    @property
    def stems(self) -> tuple[str, ...]:
        """Beginnings of the projections' keys."""
        return tuple(f"{name}." for name in self.projections)

    def absent(self, _: Iterable[str]) -> str:
        """Fault of a checkpoint without any of the projections."""
        return f"holds no {' or '.join(self.projections)}; save the model with its projections"

    def family_linear(self, name: str, single_linear: bool = False) -> str:
        """The name itself, since CLIP's names are canonical.

        Raises:
            ValueError: it is not a projection of this model.
        """
        if name not in self.projections:
            raise ValueError(f"{name} is not CLIP's {' or '.join(self.projections)}")
        return name


# Key prefixes of: a full model today; an older full model, or one without its head; a full model
# whose keys all have another `model.` in front, which transformers removes; a tower only.
VISUAL = ("model.visual.", "visual.", "model.model.visual.", "")

OMNI = ("ln_q", "mlp.0", "mlp.2")

FAMILIES = {
    "qwen3_vl": Family("model.visual.", VISUAL),
    "qwen3_vl_moe": Family("model.visual.", VISUAL),
    # transformers renames the files' `thinker.visual.` when it loads them.
    "qwen3_omni_moe": Family(
        "thinker.model.visual.", ("thinker.visual.", "thinker.model.visual."), "merger_list", OMNI
    ),
    "qwen3_omni_moe_thinker": Family(
        "model.visual.", ("visual.", "model.visual."), "merger_list", OMNI
    ),
    "qwen3_5": Family("model.visual.", VISUAL, deepstack=""),
    "qwen3_5_moe": Family("model.visual.", VISUAL, deepstack=""),
    "qwen4_exp": Family("model.visual.", VISUAL, deepstack=""),
    # Checkpoints of a tower only.
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
    "metaclip_2": ClipFamily(),
    "metaclip_2_text_model": ClipFamily(PROJECTIONS[:1]),
    "metaclip_2_vision_model": ClipFamily(PROJECTIONS[1:]),
}

_TRANSFORMERS = "transformers.models.{0}.modeling_{0}"
# (module, class) of transformers that a checkpoint of each model_type loads into.
HF_CLASSES = {
    model_type: (_TRANSFORMERS.format(module), name)
    for module, classes in {
        "qwen3_vl": {
            "qwen3_vl": "Qwen3VLForConditionalGeneration",
            "qwen3_vl_vision": "Qwen3VLVisionModel",
        },
        "qwen3_vl_moe": {
            "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
            "qwen3_vl_moe_vision": "Qwen3VLMoeVisionModel",
        },
        "qwen3_omni_moe": {
            "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
            "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
            "qwen3_omni_moe_vision_encoder": "Qwen3OmniMoeVisionEncoder",
        },
        "qwen3_5": {
            "qwen3_5": "Qwen3_5ForConditionalGeneration",
            "qwen3_5_vision": "Qwen3_5VisionModel",
        },
        "qwen3_5_moe": {
            "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
            "qwen3_5_moe_vision": "Qwen3_5MoeVisionModel",
        },
        "qwen4_exp": {
            "qwen4_exp": "Qwen4ExpForConditionalGeneration",
            "qwen4_exp_vision": "Qwen4ExpVisionModel",
        },
        "clip": {
            "clip": "CLIPModel",
            "clip_text_model": "CLIPTextModelWithProjection",
            "clip_vision_model": "CLIPVisionModelWithProjection",
        },
        "metaclip_2": {
            "metaclip_2": "MetaClip2Model",
            "metaclip_2_text_model": "MetaClip2TextModelWithProjection",
            "metaclip_2_vision_model": "MetaClip2VisionModelWithProjection",
        },
    }.items()
    for model_type, name in classes.items()
}


def family_of(model_type: object, where: str) -> Family:
    """The family of a model_type with a Qwen3 ViT.

    Args:
        model_type: the model_type in a config.
        where: path of the config, for the message.

    Raises:
        UserError: the model_type is not supported; lists those that are.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    if isinstance(model_type, str) and model_type in CLIPS:
        raise unknown(model_type, where, "Qwen3 vision tower", FAMILIES)
    raise unknown(model_type, where, "Qwen3 vision tower or CLIP projection", [*FAMILIES, *CLIPS])


def adaptable_family_of(model_type: object, where: str) -> Family | ClipFamily:
    """The family of a model_type with a Qwen3 ViT or CLIP projections; raises as `family_of`."""
    known: dict[str, Family | ClipFamily] = {**FAMILIES, **CLIPS}
    if not isinstance(model_type, str) or model_type not in known:
        raise unknown(model_type, where, "Qwen3 vision tower or CLIP projection", known)
    return known[model_type]


def unknown(model_type: object, where: str, what: str, known: Iterable[str]) -> UserError:
    fault = f"model_type {model_type!r} has no {what} that we know"
    return UserError(f"{where}: {fault}; known: {', '.join(known)}")


def linear_of_live_path(path: str) -> str | None:
    """The canonical name of the Linear at a path of an HF model of any family.

    Prefixes of keys in files are accepted too, since they are the paths in other versions of
    transformers.

    Returns:
        The name; None if it is neither a Merger's Linear nor a projection of CLIP.
    """
    if path in PROJECTIONS:
        return path
    for family in FAMILIES.values():
        for prefix in (family.live, *family.keys):
            name = family.canonical_name(path.removeprefix(prefix))
            if name and path.startswith(prefix):
                return name
    return None
