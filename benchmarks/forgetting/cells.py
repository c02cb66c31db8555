"""Labels and cells of the forgetting tables; rows are those of `targets.Bench.run`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.markdown import Row, over_seeds, refuse_equal

# Scores shown next to the naming questions, in the order of the columns.
SCORES = {
    "selectivity": "selectivity",
    "others": "others",
    "neighbours": "near neighbours",
    "others_rest": "rest",
}
HEADER = [*SCORES.values(), "false yes", "adapted Linears", "drift, %"]
DEFAULT = {
    "target": "near",
    "optimizer": "closed_form",
    "granularity": "images",
    "reduction": "mean",
}
PUBLISHED = {
    "target": "random",
    "optimizer": "adam",
    "granularity": "tokens",
    "reduction": "sum",
}
OPTIMISERS = {"closed_form": "closed form", "adam": "Adam", "leace": "LEACE"}


def mergers(row: Row) -> set[str]:
    """The Mergers that the saved adapter changes."""
    return {linear.rpartition(".")[0] for linear in row["linears"]}


def where(row: Row) -> str:
    """The adapted Mergers, in words."""
    changed = mergers(row)
    if changed == set(row["paths"]):
        return "all Mergers"
    return "main Merger" if changed == {"merger"} else ", ".join(sorted(changed))


def parts(row: Row) -> str:
    """The adapted Linears within those Mergers."""
    return " and ".join(sorted({linear.rpartition(".")[2] for linear in row["linears"]}))


def adapted(row: Row) -> str:
    """The Linears that the saved adapter changes, and its rank."""
    return f"{parts(row)} of {where(row)}, rank {row['rank']}"


def is_default(row: Row) -> bool:
    as_default = all(row["setting"][key] == value for key, value in DEFAULT.items())
    return as_default and (where(row), parts(row)) == ("all Mergers", "linear_fc2")


def label(row: Row) -> str:
    """The label of a row: target, optimiser, and the Linears of the saved adapter."""
    setting = row["setting"]
    if setting["optimizer"] == "leace":
        return f"LEACE, {where(row)}"
    name = f"{setting['target']}, {where(row)}"
    if parts(row) != "linear_fc2":
        name += f", {parts(row)}"
    if is_default(row):
        return f"**{name} (default)**"
    if all(setting[key] == value for key, value in PUBLISHED.items()):
        return f"**published scheme**: {name}, tokens, sum, Adam"
    named = {"adam": "Adam", "tokens": "tokens", "sum": "sum"}
    keys = ("granularity", "reduction", "optimizer")
    return ", ".join([name, *(named[v] for v in map(setting.get, keys) if v in named)])


def by_label(concept: str, rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each label, one per seed; exits if rows are inconsistent with their labels."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        check_drift(concept, row)
        group = groups.setdefault(label(row), [])
        if any(row["seed"] == other["seed"] for other in group):
            raise SystemExit(f"{concept}: two rows are “{label(row)}” with seed {row['seed']}")
        group.append(row)
    pairs = [(name, measured(row)) for name, group in groups.items() for row in group]
    refuse_equal(concept, pairs)
    return groups


def measured(row: Row) -> Row:
    """The measurements of a row, without the seconds, which vary by chance."""
    keys = ("after", "paths", "equal_because")
    return {key: row[key] for key in keys if key in row}


def check_drift(concept: str, row: Row) -> None:
    """Exit if a row has drift at a projector that the saved adapter does not change."""
    for projector in set(row["paths"]) - mergers(row):
        if (moved := row["paths"][projector]["drift"]["relative"]) != 0.0:
            raise SystemExit(
                f"{concept}: the row “{label(row)}” does not adapt {projector}, and moved it by "
                f"{moved}"
            )


def count(images: Row) -> str:
    """The number of forget images, and of regions, since crops of a photograph overlap."""
    regions = images["forget_regions"]
    return f"{images['forget']}" + (f" ({regions} regions)" if regions is not None else "")


def worst(before: Row, after: Sequence[Row]) -> str:
    """The naming question that still names the concept most often."""
    questions = [naming["question"] for naming in before["named"]]
    return max(questions, key=lambda q: sum(naming_of(scores, q)["share"] for scores in after))


def naming_of(scores: Row, question: str) -> Row:
    found: Row = next(n for n in scores["named"] if n["question"] == question)
    return found


def instead(scores: Sequence[Row], question: str) -> str:
    """The two most frequent answers to a naming question, with their shares in per cent."""
    shares: Counter[str] = Counter()
    for one in scores:
        for answer, share in naming_of(one, question)["instead"].items():
            shares[answer] += share / len(scores)
    return ", ".join(f"{clean(a)} {100 * share:.1f}" for a, share in shares.most_common(2)) or "–"


def clean(answer: str) -> str:
    """An answer of the model, shortened for a cell."""
    text = " ".join(answer.replace("|", "/").split())
    return text if len(text) <= 32 else f"{text[:31]}…"


def score_cells(scores: Sequence[Row]) -> list[str]:
    """The SCORES, and the yes/no question that is most often answered wrongly."""
    cells = [over_seeds(one[key] for one in scores) for key in SCORES]
    return [*cells, over_seeds(false_yes(one) for one in scores)]


def false_yes(scores: Row) -> float | None:
    """The largest share of forget images for which a question is wrongly answered yes."""
    return max(scores["false_yes"].values(), default=None)


def change_cells(rows: Sequence[Row]) -> list[str]:
    """The adapted Linears, and the largest drift over the projectors."""
    return [adapted(rows[0]), over_seeds(drift(row) for row in rows)]


def drift(row: Row) -> float:
    return max(float(one["drift"]["relative"]) for one in row["paths"].values())


def found_by(row: Row, readers: Sequence[str]) -> float:
    """The largest share of forget images that one of these readers finds, at any projector."""
    projectors: Iterable[dict[str, Any]] = row["paths"].values()
    return max(float(one["readers"][r]["after"]["forget"]) for one in projectors for r in readers)
