"""Families over what later commands write: attacks.json, certificates, and ledgers."""

import json
import random
from contextlib import suppress
from pathlib import Path

from jax_unlearn.runs.ledger.chain import FILE as CHAIN
from jax_unlearn.runs.ledger.store import STORE
from jax_unlearn.runtime.digests import of_bytes, of_text
from jax_unlearn.runtime.outputs import CERTIFICATE
from tests.attack.mutations import flipped, mutated, resealed_files
from tests.attack.outcomes import Attack
from tests.attack.place import Attacks, Place, own_copy

ATTACKS = "attacks.json"


def attacks_file(place: Place, pick: random.Random, count: int) -> Attacks:
    """attacks.json, with a digest that fits in half of them, for all commands that read it."""
    with own_copy(place.attacked, place) as copy:
        path, words = copy / ATTACKS, ["--out", str(place.out)]
        for number, what in enumerate(resealed_files(path, pick, count)):
            if number % 4 == 0:
                yield Attack(what, ["certify", str(copy)])
            elif number % 4 == 1:
                yield Attack(what, ["attack", str(copy), "--kinds", "readers"])
            else:
                runs = ["report", "--compare", str(copy), str(place.run)]
                yield Attack(what, [*runs, *words], place.out)


def certificate(place: Place, pick: random.Random, count: int) -> Attacks:
    """certificate.json, with a digest that fits in half of them."""
    with own_copy(place.attacked, place) as copy:
        for number, what in enumerate(resealed_files(copy / CERTIFICATE, pick, count)):
            words = ["verify", str(copy)] + ["--no-figures"] * (number % 4 > 0)
            yield Attack(what, words, differs=True)


def ledger(place: Place, pick: random.Random, count: int) -> Attacks:
    """A ledger whose chain or store was damaged, or forged with digests that fit."""
    for number in range(count):
        with own_copy(place.ledger, place) as copy:
            what = pick.choice([damaged_chain, forged_chain, damaged_store, forged_store])(
                copy, pick
            )
            words = pick.choice(
                [
                    ["list", str(copy)],
                    ["list", str(copy), "--json"],
                    ["solve", str(copy), "--out", str(place.out)],
                    ["add", str(copy), "--concept", "astronaut"],
                    ["undo", str(copy), pick.choice(sorted(ids_of(copy)))],
                ]
            )
            out = place.out if words[0] == "solve" else None
            yield Attack(f"ledger {number}, {words[0]}: {what}", ["ledger", *words], out)


def ids_of(directory: Path) -> set[str]:
    """Whatever stands where the ids of requests do."""
    found = {"0" * 12}
    for line in (directory / CHAIN).read_bytes().splitlines():
        with suppress(ValueError, TypeError, KeyError):
            found.add(str(json.loads(line)["id"]) or "x")
    return {id.replace("\x00", "") or "x" for id in found}


def damaged_chain(directory: Path, pick: random.Random) -> str:
    path = directory / CHAIN
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    path.write_bytes(
        pick.choice([flipped(data, pick), b"".join(pick.sample(lines, len(lines))), *lines])
    )
    return "damaged chain"


def forged_chain(directory: Path, pick: random.Random) -> str:
    """A chain in which one entry says something else, with all digests right again."""
    path = directory / CHAIN
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    at = pick.randrange(len(entries))
    entries[at] = mutated(entries[at], pick)
    return write_chain(path, entries)


def write_chain(path: Path, entries: list) -> str:
    """Write entries with digests that fit, as far as they can have one; returns the text."""
    before, lines = "", []
    for entry in entries:
        if isinstance(entry, dict):
            entry = {**entry, "before": before}
            entry.pop("digest", None)
            before = of_text(json.dumps(entry, sort_keys=True))
            entry["digest"] = before
        lines.append(json.dumps(entry, sort_keys=True) + "\n")
    path.write_text("".join(lines))
    return f"forged chain: {''.join(lines)[-300:]}"


def damaged_store(directory: Path, pick: random.Random) -> str:
    path = pick.choice(sorted((directory / STORE).iterdir()))
    path.write_bytes(flipped(path.read_bytes(), pick))
    if gone := pick.random() < 0.2:
        path.unlink()
    return f"damaged store: {path.name}{', gone' if gone else ''}"


def forged_store(directory: Path, pick: random.Random) -> str:
    """Another content of a file of the store, under the name that its digest gives."""
    path = pick.choice(sorted((directory / STORE).iterdir()))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(mutated(json.loads(data[8:end]), pick)).encode()
    other = pick.choice(
        [flipped(data, pick), len(header).to_bytes(8, "little") + header + data[end:]]
    )
    digest = of_bytes(other)
    path.unlink()
    path.with_name(digest + path.suffix).write_bytes(other)
    chain = directory / CHAIN
    entries = [
        json.loads(line.replace(path.stem, digest)) for line in chain.read_text().splitlines()
    ]
    return f"forged store: {path.name}; {write_chain(chain, entries)[:40]}"
