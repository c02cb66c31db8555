"""What a run achieved, in words: a verdict of two sentences, and who can still find what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax_unlearn.attacks.record import RELEARNING

Metrics = Mapping[str, Any]

# Up to this share of what a perfect reader has beyond a guess, a concept counts as hidden; up to
# the second one as partly readable.
HIDDEN, PARTLY = 0.1, 0.5
# Labelled images of each side that "a few" means.
FEW = 10


@dataclass(frozen=True)
class Finder:
    """Somebody who looks for the concept.

    Attributes:
        who: what they have and do.
        before: what they find before the edit, in words.
        after: what they find after it.
        beyond_guess: the share, of what a perfect reader has beyond a guess, that they find after
            the edit; None if that was not measured.
    """

    who: str
    before: str
    after: str
    beyond_guess: float | None

    @property
    def level(self) -> str:
        """hidden, partly, readable, or unknown."""
        if self.beyond_guess is None:
            return "unknown"
        if self.beyond_guess <= HIDDEN:
            return "hidden"
        return "partly" if self.beyond_guess <= PARTLY else "readable"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def rates(row: Metrics) -> str:
    """The metrics of an attack: TPR / FPR, or a balanced accuracy or an AUC."""
    for key, text in (("balanced", "accuracy"), ("auc", "AUC")):
        if key in row:
            return f"{text} {percent(row[key])}"
    return f"{percent(row['true_positive_rate'])} / {percent(row.get('false_positive_rate'))}"


def verdict(m: Metrics, concept: str, finders: list[Finder]) -> list[str]:
    """Two sentences: what the model says, and what can still be found by whom."""
    kept = f"{percent(m['preserve']['accuracy_after'])} of the images to keep"
    before_kept = percent(m["preserve"]["accuracy_before"])
    forget = m["forget"]
    if "zero_shot" in m:
        said = (
            f"Zero-shot classification names “{concept}” in {percent(forget['accuracy_after'])} of "
            f"its held-out samples (before {percent(forget['accuracy_before'])}, a guess "
            f"{percent(forget['chance'])}), and is right about {kept} (before {before_kept})."
        )
    elif named := worst_named(m):
        before, after = named
        instead = next(iter(after["instead"]), None)
        also = (
            f"; its most frequent other answer is “{instead}”"
            if instead and after["share"] < 1
            else ""
        )
        others = [m["vlm"][when]["others"] for when in ("before", "after")]
        about = (
            f"names “{concept}” in {percent(after['share'])} of its held-out images (before "
            f"{percent(before['share'])})"
        )
        if before["share"] <= before["chance"]:
            about = (
                f"named “{concept}” no more often than a guess before the edit already, so that "
                "this says nothing about forgetting"
            )
        said = (
            f"Asked “{after['question']}”, the model {about}{also}; about "
            f"other images it is right in {percent(others[1])} (before "
            f"{percent(others[0])})."
        )
    else:
        said = (
            f"The model itself was not asked yet; a probe fitted before the edit names “{concept}” "
            f"in {percent(forget['accuracy_after'])} of its held-out images (before "
            f"{percent(forget['accuracy_before'])}, a guess {percent(forget['chance'])}), and is "
            f"right about {kept} (before {before_kept})."
        )
    by_level = {
        level: [one.who for one in finders if one.level == level]
        for level in ("hidden", "partly", "readable")
    }
    parts = []
    if by_level["hidden"]:
        parts.append(f"it is hidden from {listed(by_level['hidden'])}")
    if by_level["partly"]:
        parts.append(f"partly readable by {listed(by_level['partly'])}")
    if by_level["readable"]:
        parts.append(f"still readable by {listed(by_level['readable'])}")
    found = "; ".join(parts)
    return [said, found[:1].upper() + found[1:] + "."]


def listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if words[:-1] else "") + words[-1]


def worst_named(m: Metrics) -> tuple[Metrics, Metrics] | None:
    """(before, after) of the open naming question that names it most often after the edit."""
    if not m.get("vlm") or not m["vlm"]["after"]["named"]:
        return None
    pairs = zip(m["vlm"]["before"]["named"], m["vlm"]["after"]["named"], strict=True)
    return max(pairs, key=lambda pair: pair[1]["share"])


def finders(m: Metrics, attacks: Metrics | None) -> list[Finder]:
    """Who looks for the concept and what they find, the least able first."""
    found = []
    if named := worst_named(m):
        before, after = named
        shares = percent(before["share"]), percent(after["share"])
        beyond = beyond_guess(before["share"], after["share"], after["chance"])
        found.append(Finder("somebody who asks the model", *shares, beyond))
    elif "zero_shot" in m:
        forget = m["forget"]
        before, after = forget["accuracy_before"], forget["accuracy_after"]
        beyond = beyond_guess(before, after, forget["chance"])
        found.append(Finder("zero-shot classification", percent(before), percent(after), beyond))
    elif "paths" in m:
        asked = "not measured: jax-unlearn evaluate RUN --vlm"
        found.append(Finder("somebody who asks the model", "", asked, None))
    found += with_labels(m)
    if "paths" in m:
        found += relearners(attacks)
    found.append(
        Finder("somebody who has the original weights and puts them back", "all", "all", 1.0)
    )
    return found


def beyond_guess(before: float, after: float, chance: float) -> float | None:
    """The share beyond a guess after the edit; None if it was no more than a guess before it."""
    if before <= chance:
        return None
    return (after - chance) / max(1 - chance, 1e-9)


def with_labels(m: Metrics) -> list[Finder]:
    """Readers fitted on a few labelled images, and on all there are; the worst of all concepts."""
    few, many = [], []
    for one in m.get("reidentification", ()):
        known = [k for k in one["few_shot"].get("mean", {}) if int(k) <= FEW]
        if known:
            k = max(known, key=int)
            curve = one["few_shot"]["mean"][k]
            few.append((curve["after"][0], curve["before"][0], int(k)))
        for readers in one["refitted"].values():
            many += [(s["after"]["balanced"], s["before"]["balanced"]) for s in readers.values()]
    found = []
    if few:
        after, before, k = max(few)
        who = f"somebody with {k} labelled image{'s' if k > 1 else ''} of each side"
        found.append(Finder(who, accuracy(before), accuracy(after), 2 * after - 1))
    if many:
        after, before = max(many)
        who = "somebody with all labelled images there are and the best reader"
        found.append(Finder(who, accuracy(before), accuracy(after), 2 * after - 1))
    return found


def accuracy(balanced: float) -> str:
    return f"accuracy {percent(balanced)} (a guess: 50.0 %)"


def relearners(attacks: Metrics | None) -> list[Finder]:
    """Attackers who fine-tune the language model, or the edited Linears."""
    who = (
        "somebody who fine-tunes the language model",
        "somebody who fine-tunes the edited Linears",
    )
    known = (attacks or {}).get("attacks", {})
    found = []
    for name, words in zip(RELEARNING, who, strict=True):
        best = known.get(name, {}).get("strongest")
        if not best:
            ask = "not measured: jax-unlearn attack RUN"
            found.append(Finder(words, "", ask, None))
            continue
        edited = best["edited"]
        true, false = edited["true_positive_rate"], edited.get("false_positive_rate", 0.0)
        images = best["setting"]["images"]
        found.append(
            Finder(
                f"{words} on {images} images",
                "",
                f"named in {percent(true)}, falsely in {percent(false)}",
                true - false,
            )
        )
    return found
