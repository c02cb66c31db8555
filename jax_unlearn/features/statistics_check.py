"""Check the content of a statistics file against itself: types, shapes and ranges.

Its digest shows that it was damaged; a file whose writer made it wrong has a digest that fits.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from jax_unlearn.data.dataset import GROUPS
from jax_unlearn.features.extracted import within
from jax_unlearn.features.requests import LedgerFacts
from jax_unlearn.features.token_sample import TOKENS
from jax_unlearn.runtime.forms import fits

Arrays = Mapping[str, np.ndarray]
# Kinds of dtypes, as in `np.dtype.kind`.
FLOAT, INTEGER, BOOLEAN = "f", "iu", "b"
# Of a sum over rows, or of their products: its square is still a float32.
LARGEST = 1e18
TEXTS_OF_SAMPLES = ("forget_classes", "skipped", "left_out")


class RequestFacts(TypedDict):
    """What a file has of the requests of a ledger beside its arrays."""

    ids: list[str]
    concepts: list[str]
    ledger: LedgerFacts


def check_content(
    arrays: Arrays, facts: Mapping[str, Any], linears: Mapping[str, str], adaptable: int
) -> None:
    """Check every entry of a statistics file that is read later.

    Args:
        arrays: its arrays.
        facts: its facts.
        linears: for each projector of the file, the full name of its Linear.
        adaptable: how many of them, the first, may be adapted.

    Raises:
        ValueError: an entry is missing, or has another type, shape or range; names it.
    """
    widths = {}
    for number, (projector, linear) in enumerate(linears.items()):
        out, width = array(arrays, f"path.{projector}.weight", FLOAT, None, None).shape
        array(arrays, f"path.{projector}.bias", FLOAT, out)
        widths[linear] = width
        if number < adaptable:
            array(arrays, f"blank.{projector}", FLOAT, out)
    needed = list(linears.values())[:adaptable]
    summed = texts(facts["summed"], "summed")
    if not summed or not {*summed} <= {*needed}:
        raise ValueError(f"summed is {summed}, and not of {needed}")
    check_samples(facts["samples"])
    groups = mapping(facts["groups"], "groups")
    for group in (*GROUPS, *(name for name in groups if name not in GROUPS)):
        if group not in groups:
            raise ValueError(f"groups has no {group}")
        check_group(arrays, group, mapping(groups[group], f"groups.{group}"), widths)
        if group in GROUPS and (missing := {*needed} - {*groups[group]["taps"]}):
            raise ValueError(f"groups.{group}.taps has no {min(missing)}")
    parts = 1 if f"{GROUPS[0]}.choosing" not in arrays else 2
    for group in GROUPS[:2]:
        images = number_of_samples(groups[group])
        for linear in summed:
            for part in range(parts):
                name = f"{group}.{linear}.{part}"
                check_statistics(arrays, name, widths[linear], images, group == GROUPS[0])
    pairs = sequence(facts["counterparts"], "counterparts")
    for pair in pairs:
        check_counterpart(mapping(pair, "counterparts"))
    if facts["stand_ins"] not in (0, len(pairs)) or isinstance(facts["stand_ins"], bool):
        raise ValueError(f"stand_ins is {facts['stand_ins']!r}, and neither 0 nor {len(pairs)}")
    for number in range(facts["stand_ins"]):
        images = number_of_samples(groups[GROUPS[0]])
        check_stand_in(arrays, f"stand_in.{number}", {n: widths[n] for n in needed}, images)
    if facts["requests"] is not None:
        images, held_out = (number_of_samples(groups[group]) for group in (GROUPS[0], GROUPS[2]))
        check_requests(arrays, facts["requests"], images, held_out)


def check_samples(samples: Any) -> None:
    """Check the counts of the samples and what is said of them."""
    samples = mapping(samples, "samples")
    for name in GROUPS:
        count = samples.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"samples.{name} is {count!r}, and no count")
    if "skipped" not in samples:
        raise ValueError("samples has no skipped")
    for name in TEXTS_OF_SAMPLES:
        texts(samples.get(name, []), f"samples.{name}")
    texts([samples.get("fingerprint")], "samples.fingerprint")


def check_group(
    arrays: Arrays, group: str, facts: Mapping[str, Any], widths: Mapping[str, int]
) -> None:
    """Check the samples of a group and their rows."""
    for kind in ("prompts", "images"):
        for pair in sequence(facts.get(kind), f"groups.{group}.{kind}"):
            if len(texts(pair, f"groups.{group}.{kind}")) != 2:
                raise ValueError(f"groups.{group}.{kind} must be pairs")
    count = number_of_samples(facts)
    for tap in texts(facts.get("taps"), f"groups.{group}.taps"):
        if tap not in widths:
            raise ValueError(f"groups.{group}.taps: {tap!r} is no Linear of the file")
        rows = len(array(arrays, f"{group}.{tap}.x", FLOAT, None, widths[tap]))
        image = array(arrays, f"{group}.{tap}.image", INTEGER, rows)
        # From 0 to the last sample, without gaps.
        steps = np.diff(image, prepend=-1, append=count)
        if not np.isin(steps, (0, 1)).all() or (steps[0], steps[-1]) != (1, 1):
            raise ValueError(f"{group}.{tap}.image does not number {count} samples in order")
        if f"{group}.{tap}.tokens" in arrays:
            check_tokens(arrays, f"{group}.{tap}", widths[tap], count)
    if f"{group}.choosing" in arrays:
        array(arrays, f"{group}.choosing", BOOLEAN, count)


def check_tokens(arrays: Arrays, name: str, width: int, count: int) -> None:
    """Check the sampled tokens of some of a group's samples; see `token_sample`."""
    rows = len(array(arrays, f"{name}.tokens", FLOAT, None, width))
    image = array(arrays, f"{name}.of_image", INTEGER, rows)
    places = image.reshape(-1, TOKENS) if rows % TOKENS == 0 else image[:, None]
    right = rows % TOKENS == 0 and (places == places[:, :1]).all()
    first = places[:, 0]
    if not right or not (np.diff(first) > 0).all() or not np.isin(first, np.arange(count)).all():
        raise ValueError(f"{name}.of_image must number samples in order, each {TOKENS} times")


def check_counterpart(pair: Mapping[str, Any]) -> None:
    """Check the entries of a counterpart; see `stand_in.Counterpart`."""
    texts([pair.get("concept"), pair.get("name")], "counterparts")
    for side in ("forget", "preserve"):
        texts(pair.get(side), f"counterparts.{side}")


def check_requests(arrays: Arrays, facts: Any, images: int, held_out: int) -> None:
    """Check the requests of a ledger; see `requests.Requests`."""
    if not fits(facts, RequestFacts):
        raise ValueError("requests must be those of a ledger")
    count, rank = len(facts["ids"]), facts["ledger"]["rank_after"]
    if not count or len(facts["concepts"]) != count or (rank is not None and rank < 1):
        raise ValueError("requests: each must have a concept, and rank_after be positive")
    for part, size in (("train", images), ("test", held_out)):
        pairs = array(arrays, f"requests.{part}", INTEGER, None, 2)
        numbered = np.isin(pairs[:, 0], np.arange(count)).all()
        if not numbered or not np.array_equal(np.unique(pairs[:, 1]), np.arange(size)):
            raise ValueError(f"requests.{part}: every image must be of a request")


def check_stand_in(arrays: Arrays, name: str, widths: Mapping[str, int], images: int) -> None:
    """Check the stand-in images of a concept; see `stand_in.StandIn`."""
    forget = array(arrays, f"{name}.forget", INTEGER, None)
    match = array(arrays, f"{name}.match", INTEGER, len(forget))
    counts = set()
    for linear, width in widths.items():
        counts.add(len(array(arrays, f"{name}.means.{linear}", FLOAT, None, width)))
        moments = f"{name}.tokens.{linear}"
        if f"{moments}.forget" in arrays:
            for one in ("forget", "stand_in", "matched", "preserve"):
                found = array(arrays, f"{moments}.{one}", FLOAT, width, width)
                if found.dtype != np.float64:
                    raise ValueError(f"{moments}.{one} is {found.dtype}, and not float64")
    for indices, most in ((forget, images), (match, min(counts))):
        if not len(indices) or len(counts) > 1 or not np.isin(indices, np.arange(most)).all():
            raise ValueError(f"{name}: its images are not those of the file")


def check_statistics(arrays: Arrays, name: str, width: int, images: int, forget: bool) -> None:
    """Check the statistics of the rows of one tap; see `Statistics`."""
    if array(arrays, f"{name}.by_image", BOOLEAN, 1).item() != forget:
        raise ValueError(f"{name}.by_image must be {forget}")
    count = array(arrays, f"{name}.count", INTEGER, 1).item()
    double(arrays, f"{name}.total", width)
    if count < 1 or array(arrays, f"{name}.noise", FLOAT, 1).item() < 0:
        raise ValueError(f"{name}.count must be positive, and {name}.noise not negative")
    summed = f"{name}.gram" in arrays
    if summed:
        double(arrays, f"{name}.gram", width * (width + 1) // 2)
    if f"{name}.x" in arrays or forget or not summed:
        rows = len(array(arrays, f"{name}.x", FLOAT, None if summed else count, width))
        image = array(arrays, f"{name}.image", INTEGER, rows)
        for column in ("ones", "norms"):
            array(arrays, f"{name}.{column}", FLOAT, rows)
        if rows and not (image.min() >= 0 and image.max() < images):
            raise ValueError(f"{name}.image must be from 0 to {images - 1}")


def array(arrays: Arrays, name: str, kinds: str, *shape: int | None) -> np.ndarray:
    """An array whose dtype is of certain kinds and whose shape is given; None is any length."""
    if name not in arrays:
        raise ValueError(f"there is no array {name}")
    found = arrays[name]
    fits = len(found.shape) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, found.shape, strict=True)
    )
    if found.dtype.kind not in kinds or not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {found.dtype} of shape {found.shape}, and not ({wanted})")
    if kinds == FLOAT and not within(found, LARGEST):
        raise ValueError(f"{name} has values that are not finite, or beyond {LARGEST:.0e}")
    return found


def double(arrays: Arrays, name: str, size: int) -> None:
    """Check a vector of float64."""
    if array(arrays, name, FLOAT, size).dtype != np.float64:
        raise ValueError(f"{name} is {arrays[name].dtype}, and not float64")


def number_of_samples(group: Mapping[str, Any]) -> int:
    return len(group["prompts"]) + len(group["images"])


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")
    return value


def sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list")
    return value


def texts(value: Any, name: str) -> list[str]:
    """A list of texts, in which no character ends a path."""
    found = [text for text in sequence(value, name) if isinstance(text, str) and "\0" not in text]
    if len(found) != len(value):
        raise ValueError(f"{name} must be texts")
    return found
