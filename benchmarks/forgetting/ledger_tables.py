"""Tables of the benchmark of ledgers: docs/results/ledger.md."""

from typing import Any

from benchmarks.markdown import Row, caption, over_seeds, refuse_equal, table_of

COMMAND = "forgetting.ledger"
SETS = {
    "classes": "",
    "unseen": ", others",
    "overlapping": ", overlapping",
    "stand_in": "",
    "unseen, stand_in": ", others",
}
NAMED = ["named by the model, worst", "by a probe, worst", "mean"]
KEPT = ["selectivity", "others, the model", "others, a probe", "drift, %"]


def table(results: dict[str, Any]) -> str:
    """The ways to combine requests, by how many there are."""
    rows = []
    for row in results["rows"]:
        raised = {k: v for k, v in row["strengths"].items() if v > 1}
        how = f"{row['combine']}, `--equal`" if row["equal"] else row["combine"]
        how += ", `stand_in`" * row["set"].endswith("stand_in")
        strengths = ", ".join(f"{concept} {value:.2f}" for concept, value in raised.items())
        rows.append(
            [
                f"{row['requests']}{SETS[row['set']]}",
                how,
                *named_cells(row),
                *kept_cells(row),
                str(row["rank"]),
                f"{row['cpu_seconds']:.0f}",
                strengths or "–",
            ]
        )
    header = ["requests", "fit", *NAMED, *KEPT, "rank", "CPU s", "moved further, times"]
    labelled = [(f"{row['set']} {row['requests']} {row['combine']} {row['equal']}", row)
                for row in results["rows"]]  # fmt: skip
    refuse_equal("ledger", labelled)
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"


def orders(results: dict[str, Any]) -> str:
    """What adapters that are stacked leave in each order, beside a ledger."""
    digests, stacked = results["orders"]["digests"], results["orders"]["stacked"]
    rows = []
    for count in dict.fromkeys(row["requests"] for row in stacked):
        (ledger,) = (
            row for row in results["rows"]
            if (row["set"], row["combine"], row["equal"], row["requests"])
            == ("classes", "sum", False, count)
        )  # fmt: skip
        rows.append([str(count), "a ledger, any order", *named_cells(ledger), *kept_cells(ledger)])
        rows += [
            [str(count), f"stacked, order {row['order'] + 1}", *named_cells(row), *kept_cells(row)]
            for row in stacked
            if row["requests"] == count
        ]
    same = (
        f"{len(digests)} ledgers with the sixteen requests in {len(digests)} random orders gave "
        f"{len(set(digests))} adapter, by the SHA-256 of adapter_model.safetensors: "
        f"`{'`, `'.join(sorted({one[:16] for one in digests}))}…`."
    )
    header = ["requests", "how", *NAMED, *KEPT]
    refuse_equal("ledger orders", [(f"{r['requests']} {r['order']}", r) for r in stacked])
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}\n\n{same}"


def undone(results: dict[str, Any]) -> str:
    """Each of the requests withdrawn."""
    rows = [
        [
            row["concept"],
            *(f"{over_seeds([row[by]['before']])} → {over_seeds([row[by]['after']])}"
              for by in ("model", "probes")),
            *(over_seeds([row["others_named"][by]]) for by in ("model", "probes")),
            over_seeds([row["drift"]]),
        ]
        for row in results["undo"]
    ]  # fmt: skip
    refuse_equal("ledger undo", [(row["concept"], row) for row in results["undo"]])
    header = ["withdrawn", "named by the model, without an edit → after", "by a probe"]
    header += ["the other requests, by the model, worst", "by a probe, worst", "drift, %"]
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"


def named_cells(row: Row) -> list[str]:
    """The worst request by the model, and the worst and the mean by a probe."""
    by_model, by_probe = row["named"]["model"].values(), row["named"]["probe"].values()
    mean = sum(by_probe) / len(by_probe)
    return [over_seeds([one]) for one in (max(by_model), max(by_probe), mean)]


def kept_cells(row: Row) -> list[str]:
    """Selectivity and the images to keep, before → after, and their drift."""
    model, probes = row["model"], row["probes"]
    pairs = [
        (model["before"]["selectivity"], model["after"]["selectivity"]),
        (model["before"]["others"], model["after"]["others"]),
        (probes["before"], probes["after"]),
    ]
    cells = [f"{over_seeds([before])} → {over_seeds([after])}" for before, after in pairs]
    return [*cells, over_seeds([probes["drift"]])]
