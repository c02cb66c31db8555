"""Check a ledger, and list its entries and active requests."""

from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.ledger.chain import Entry
from jax_unlearn.runs.ledger.options import Listing
from jax_unlearn.runs.ledger.requests import Ledger, divide, open_ledger
from jax_unlearn.runs.ledger.source import replaced
from jax_unlearn.runs.ledger.store import STORE, SUFFIX
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runtime.errors import UserError


def listing(command: Listing) -> Metrics:
    """All entries of a ledger, checked, and which requests are active.

    Raises:
        UserError: the chain or a file of the store is damaged, or the chain does not have the
            entry that `command.digest` names.
    """
    ledger = open_ledger(command.directory)
    requests = {one.id: one for one in ledger.requests()}
    for entry in ledger.entries:
        if entry.kind == "add" and entry.id not in requests:
            # Also what was withdrawn can be read.
            ledger.images_of(entry)
    onto = {}
    if requests and ledger.config.objective.target == STAND_IN:
        onto = replaced(divide([*requests.values()], ledger.preserve), ledger.tower.linears)
    digests = [entry.digest for entry in ledger.entries]
    if command.digest is not None and command.digest not in digests:
        raise UserError(
            f"{command.directory}: no entry has the digest {command.digest}, so this ledger does "
            "not continue the one that had; ask for that one"
        )
    return {
        "entries": [
            {"number": n, "kind": e.kind, "id": e.id, "concept": concept_of(ledger, e),
             "time": e.time, "digest": e.digest}
            for n, e in enumerate(ledger.entries, 1)
        ],
        "active": [
            {"id": id, "concept": one.concept, "images": int((~one.images.held_out).sum()),
             "held_out": int(one.images.held_out.sum()), **moved_onto(onto.get(id))}
            for id, one in requests.items()
        ],
        "names": ledger.preserve.texts,
        "unnamed": unnamed(ledger),
        "digest": digests[-1],
    }  # fmt: skip


def moved_onto(pair: tuple[Counterpart, Counterpart] | None) -> Metrics:
    """The stand-in of a request, and the nearest class if that is forgotten too."""
    if pair is None:
        return {}
    now, alone = (one.name for one in pair)
    return {"stand_in": now, "in_place_of": alone if alone != now else None}


def concept_of(ledger: Ledger, entry: Entry) -> str:
    """The concept that an entry is about; empty for init."""
    request = ledger.added(entry.id) if entry.id else None
    return request.what["concept"] if request else ""


def unnamed(ledger: Ledger) -> list[str]:
    """Files of the store that no entry names: a command was ended before it appended its entry."""
    facts = [entry.what for entry in ledger.entries]
    used = {one.get(name) for one in facts for name in ("tower", "preserve", "images")}
    there = sorted((ledger.directory / STORE).glob(f"*{SUFFIX}"))
    return [path.name for path in there if path.stem not in used]
