"""Writes the tables of the README and of docs/ from the benchmarks' JSON: no figure by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.markdown import Row, machine, made, over_seeds, replace, shown, table, times

README = Path(__file__).parent.parent / "README.md"
ACCELERATORS = README.parent / "docs" / "accelerators.md"
RESULTS = Path(__file__).parent / "results"

# Columns of the table of readers: (reader, images).
READ = (
    *((reader, images) for reader in ("nearest_mean", "linear_probe") for images in
      ("forget", "preserve", "neighbours")),
    ("refitted_probe", "forget"),
    ("refitted_neighbour", "forget"),
)  # fmt: skip


def main() -> None:
    text = README.read_text()
    forgetting = json.loads((RESULTS / "forgetting.json").read_text())
    for concept in forgetting["concepts"]:
        name = concept["concept"].replace(" ", "-")
        text = replace(text, f"answers {name}", answers(concept))
        text = replace(text, f"readers {name}", readers(concept))
    text = replace(text, "others", others(forgetting["others"]))
    text = replace(text, "machine", machine(forgetting["machine"]))
    text = replace(text, "demo", demo_line(json.loads((RESULTS / "demo.json").read_text())))
    text = replace(text, "tower", tower(json.loads((RESULTS / "tower.json").read_text())))
    text = replace(text, "linears", linears(json.loads((RESULTS / "linears.json").read_text())))
    text = replace(text, "clip", clip(json.loads((RESULTS / "clip_forgetting.json").read_text())))
    found = json.loads((RESULTS / "optimisers.json").read_text())
    text = replace(text, "optimisers", optimisers(found))
    seen = json.loads((RESULTS / "clip_exam.json").read_text())
    text = replace(text, "clip exam", exam(seen, "held-out images, names"))
    text = replace(text, "exam", exam(json.loads((RESULTS / "exam.json").read_text())))
    for name, (file, block) in TRAINING.items():
        text = replace(text, name, block(json.loads((RESULTS / f"{file}.json").read_text())))
    README.write_text(text)
    text = ACCELERATORS.read_text()
    for name, (file, block) in SCALE.items():
        text = replace(text, name, block(json.loads((RESULTS / f"{file}.json").read_text())))
    ACCELERATORS.write_text(text)


def setting_name(setting: Row) -> str:
    where = "all Mergers" if "all" in setting["targets"] else "main Merger"
    name = f"{setting['target']}, {where}"
    if setting["preset"] == "faithful":
        return f"**faithful** ({name}, {setting['granularity']}, {setting['reduction']}, Adam)"
    optimizer = setting["optimizer"]
    if optimizer == "leace":
        return f"LEACE, {where}"
    if optimizer == "adam":
        return f"{name}, Adam"
    return f"**{name} (default)**" if name == "near, all Mergers" else name


def by_setting(concept: Row) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in concept["rows"]:
        groups.setdefault(setting_name(row["setting"]), []).append(row)
    return groups


def answers(concept: Row) -> str:
    """What the Hugging Face model says, a row a setting."""
    rows = [["before", *answer_cells([concept["before"]])]]
    for name, group in by_setting(concept).items():
        rows.append([name, *answer_cells([row["after"] for row in group])])
    return table(["target, LoRA on", *answer_header(concept["before"])], rows)


def answer_header(before: Row) -> list[str]:
    named = before["named"] + before["confirmed"]
    questions = [f"“{n['question']}” (chance {100 * n['chance']:.1f})" for n in named]
    kept = [f"kept: “{question}”" for question in asked(before)]
    return [*questions, *kept, "others", "near neighbours", "yes/no"]


def answer_cells(scores: list[Row]) -> list[str]:
    cells = [
        over_seeds(s[part][i]["share"] for s in scores)
        for part in ("named", "confirmed")
        for i in range(len(scores[0][part]))
    ]
    cells += [over_seeds(s["selectivity_of"][q] for s in scores) for q in asked(scores[0])]
    return cells + [over_seeds(s[k] for s in scores) for k in ("others", "neighbours", "yes_no")]


def asked(scores: Row) -> list[str]:
    """The open questions that forget images are asked and that do not name the concept."""
    return [q for q, share in scores["selectivity_of"].items() if share is not None]


def others(concepts: list[Row]) -> str:
    """The default setting on other concepts: the worst naming question, then what is kept."""
    rows = []
    for concept in concepts:
        after = [row["after"] for row in concept["rows"]]
        worst = max(concept["before"]["named"], key=lambda n: named(after, n["question"]))
        chance = f"{100 * worst['chance']:.1f}"
        shares = over_seeds(share_of(scores, worst["question"]) for scores in after)
        kept = [
            f"{over_seeds([concept['before'][k]])} → {over_seeds(s[k] for s in after)}"
            for k in ("selectivity", "others", "neighbours")
        ]
        rows.append([concept["concept"], over_seeds([worst["share"]]), shares, chance, *kept])
    header = ["concept", "named before", "named after", "chance", "selectivity", "others"]
    return table([*header, "near neighbours"], rows)


def named(after: list[Row], question: str) -> float:
    return float(np.mean([share_of(scores, question) for scores in after]))


def share_of(scores: Row, question: str) -> float:
    return float(next(n["share"] for n in scores["named"] if n["question"] == question))


def readers(concept: Row) -> str:
    """What readers find on each path, a row a setting and path."""
    groups = by_setting(concept)
    some = next(iter(groups.values()))
    rows = [["before", path, *read_cells(some[:1], path, "before")] for path in some[0]["paths"]]
    for name, group in groups.items():
        rows += [[name, path, *read_cells(group, path, "after")] for path in group[0]["paths"]]
    header = [f"{reader.replace('_', ' ')}: {images}" for reader, images in READ]
    return table(["target, LoRA on", "path", *header], rows)


def read_cells(group: list[Row], path: str, when: str) -> list[str]:
    return [
        over_seeds(row["paths"][path]["readers"][reader][when][images] for row in group)
        for reader, images in READ
    ]


def tower(results: Row) -> str:
    """Images per second against PyTorch, and where the time goes."""
    rows = []
    for row in results["rows"]:
        name = f"{row['model']}, {row['dtype']}, {row['n_images']} {row['images']} images"
        speed = row["images_per_second"]
        shown = [f"{speed[k]:.2f}" if speed[k] < 10 else f"{speed[k]:.0f}" for k in speed]
        parts = [
            f"{row['seconds'][k]:.2f}: {row['parts'][f'{k} products']:.2f}, "
            f"{row['parts'][f'{k} attention']:.2f}"
            for k in speed
        ]
        # Nothing where an earlier row has compiled the same shape.
        compiling = f"{max(0.0, row['compile_seconds']):.1f}"
        # Rows of earlier runs have none.
        known = row.get("relative_error", {})
        errors = " / ".join(f"{error:.1e}" for error in known.values()) or "–"
        rows.append([name, *shown, f"**{row['ratio']:.2f}**", *parts, compiling, errors])
    header = ["tower, images in one batch", "torch, images/s", "JAX, images/s", "ratio"]
    header += [f"{k}, s: products, attention" for k in ("torch", "JAX")]
    header += ["compiling, s", "error, torch / JAX"]
    return f"{table(header, rows)}\n\n{made(results['machine'], 'tower')}"


def jit(results: Row) -> str:
    """Milliseconds a step of every variant, then what comes before the steps."""
    cases = results["cases"]
    names = list(max((case["variants"] for case in cases), key=len))
    where = "rows, D_in → E"
    steps = [[case_name(case), *(step_cell(case, name) for name in names)] for case in cases]
    before = [
        [case_name(case), shown(case["gather"]), kept(case), *before_cells(case, names)]
        for case in cases
    ]
    first = table([f"{where}: ms a step", *names], steps)
    second = table([f"{where}: seconds before", "statistics", "rows of them", *names], before)
    spread = max(case.get("spread", 0.0) for case in cases)
    count = f"objectives after {cases[0]['steps']} steps differ by {spread:.0e} at most"
    reasons = {name: why for case in cases for name, why in case["failed"].items()}
    lines = [f"{name} could not run: {why.splitlines()[0]}" for name, why in reasons.items()]
    lines.append(f"Variants' {count}. {made(results['machine'], 'jit_vs_eager')}")
    return "\n\n".join([first, second, *lines])


def case_name(case: Row) -> str:
    return f"{case['forget'] + case['preserve']:,}, {case['d_in']} → {case['e']}"


def kept(case: Row) -> str:
    return " + ".join(f"{case['kept'][side]:,}" for side in ("forget", "preserve"))


def step_cell(case: Row, name: str) -> str:
    if name not in case["variants"]:
        return "–"
    found = case["variants"][name]
    step = shown(1000 * found["seconds"])
    return f"{step} (**{times(found['ratio'])}**)" if "ratio" in found else step


def before_cells(case: Row, names: list[str]) -> list[str]:
    known = case["variants"]
    return [shown(known[name]["compile"]) if name in known else "–" for name in names]


def objective(results: Row) -> str:
    """Seconds to what the published loop ends at."""
    torch, closed, adam = (results[key] for key in ("torch", "closed_form", "adam"))
    name = f"PyTorch eager, {results['epochs']} epochs"
    if torch["extrapolated"]:
        name += f" (from {torch['timed_epochs']} of them, {torch['seconds_per_epoch']:.2f} s each)"
    rows = [[name, shown(torch["seconds"]), "1", f"{results['goal']:.3f}"]]
    ends = {"Adam on statistics": (adam, adam["seconds"], adam)}
    if closed["first"] is not None:
        first = "closed form, first iteration that is there"
        ends[first] = closed, closed["first"], closed["to_first"]
    last = "closed form, with its last digits and the lower bound"
    ends[last] = closed, closed["seconds"], closed
    for label, (found, seconds, ratios) in ends.items():
        label += "" if found["reached"] else ": **not reached**"
        cells = [shown(seconds), f"**{times(ratios['ratio'])}**"]
        rows.append([label, *cells, f"{found['objective']:.3f}"])
    parts = [
        f"Rows to forget and preserve: {results['forget']:,} and {results['preserve']:,} of "
        f"{results['d_in']} → {results['e']}; objective at the start {results['initial']:.3f}",
        f"lower bound for any rank {closed['lower_bound']:.3f}",
        f"Adam takes {adam['preparation']:.1f} s for statistics and is there after epoch "
        f"{adam['epoch']}",
    ]
    errors = results["goal_reading_error"], closed["reading_error"], adam["reading_error"]
    parts.append(f"in float64 from the rows they are these to {max(map(abs, errors)):.0e}")
    header = ["from features in memory", "seconds", "ratio", "objective"]
    note = f"{'; '.join(parts)}. {made(results['machine'], 'time_to_objective')}"
    return f"{table(header, rows)}\n\n{note}"


def scaling(results: Row) -> str:
    """A step's time and both phases' memory, a number of rows a row."""
    rows = []
    for row in results["rows"]:
        gather, train = row["gather"], row["train"]
        counts = [f"{row['rows']:,}", f"{row['images']:,}", kept(gather)]
        step = [f"{1000 * row['seconds']:.2f}", f"{row['ratio']:.3f}"]
        memory = [f"{phase['peak_mib']:.0f}" for phase in (train, gather)]
        rows.append([*counts, *step, *memory, shown(gather["seconds"])])
    header = ["rows", "images to forget", "trained on", "ms a step", "to the first"]
    header += ["peak of training, MiB", "peak of gathering, MiB", "gathering, s"]
    some = results["rows"][0]["train"]["before_mib"]
    size = f"{results['d_in']} → {results['e']}; a process has {some:.0f} MiB after its imports."
    note = f"{size} {made(results['machine'], 'scaling')}"
    return f"{table(header, rows)}\n\n{note}"


def place(results: Row) -> str:
    """The linear algebra of the closed form on both sides, in seconds."""
    parts = results["parts"]
    sides = [*next(iter(parts.values()))]
    rows = [
        [part, *(f"{shown(by[side]['seconds'])} ({times(by[side]['ratio'])})" for side in sides)]
        for part, by in parts.items()
    ]
    what = f"{results['rows']:,} rows of {results['d_in']} → {results['e']}"
    note = f"JAX on {results['device']}. {made(results['machine'], 'where_to_solve')}"
    return f"{table([f'{what}: seconds, to the host', *sides], rows)}\n\n{note}"


def sweep(results: Row) -> str:
    """An epoch of all settings against one's."""
    number, one, all_ = results["settings"], results["one"], results["all"]
    step = 1000 * one["seconds"]
    rows = [
        ["one setting, `train`", shown(step), "1", shown(one["compile"])],
        [
            f"{number} settings at once, `train_all`",
            shown(1000 * all_["seconds"]),
            f"**{times(results['ratio'])}**",
            shown(all_["compile"]),
        ],
        [f"{number} settings one by one", shown(number * step), times(number), "–"],
    ]
    header = ["Adam", "ms an epoch", "to one setting", "compiling, s"]
    solved = results["closed_form"]
    one = solved["one"]
    closed = [
        ["one setting, `solve`", shown(one), "1"],
        [
            f"{solved['settings']} settings, `solve_all`",
            shown(solved["all"]),
            f"**{times(solved['ratio'])}**",
        ],
        [
            "one by one, counted up",
            shown(solved["one_by_one"]),
            f"{times(solved['one_by_one'] / one)}",
        ],
    ]
    heads = ["closed form", "seconds from features in memory", "to one setting"]
    sides = f"{solved['forget']:,} and {solved['preserve']:,} rows"
    note = (
        f"Closed form: {sides} of {solved['d_in']} → {solved['e']}; Adam: {results['concept']}. "
        f"The loss of {solved['checked']} settings is at most {max(0.0, solved['excess']):.0e} "
        f"above that of their own `solve`. Rank {results['rank']}. "
        f"{made(results['machine'], 'sweep')}"
    )
    return "\n\n".join([table(heads, closed), table(header, rows), note])


def linears(results: Row) -> str:
    """One concept with each choice of Linears."""
    first = ["before", *linear_cells(results["before"]), "", ""]
    rows = [first]
    for row in results["rows"]:
        drift = "–".join(
            f"{100 * f([path['drift']['relative'] for path in row['paths'].values()]):.1f}"
            for f in (min, max)
        )
        name = " and ".join(row["linears"])
        rows.append([name, *linear_cells(row["after"]), drift, f"{row['seconds']:.0f}"])
    header = ["LoRA on", "named", "selectivity", "others", "near neighbours", "yes/no"]
    what = f"{results['concept']}, {results['epochs']} epochs, {results['machine']['date']}"
    made = f"{what}, `python -m benchmarks.forgetting.linears`."
    return f"{table([*header, 'drift of what is kept, %', 'seconds'], rows)}\n\n{made}"


OPTIMISERS = {"closed_form": "closed form (default)", "adam": "Adam", "leace": "LEACE"}


def optimisers(results: Row) -> str:
    """Every concept by each optimiser."""
    rows = []
    for concept in results["concepts"]:
        rows.append([concept["concept"], "before", *linear_cells(concept["before"]), ""])
        for row in concept["rows"]:
            drift = max(path["drift"]["relative"] for path in row["paths"].values())
            name = OPTIMISERS[row["setting"]["optimizer"]]
            rows.append(["", name, *linear_cells(row["after"]), f"{100 * drift:.1f}"])
    header = ["concept", "optimiser", "named", "selectivity", "others", "near neighbours", "yes/no"]
    facts = results["machine"]
    made = f"{facts['cores']} cores, {facts['date']}, `python -m benchmarks.forgetting.optimisers`."
    return f"{table([*header, 'largest drift of what is kept, %'], rows)}\n\n{made}"


def linear_cells(scores: Row) -> list[str]:
    shares = [max(named["share"] for named in scores["named"])]
    shares += [scores[key] for key in ("selectivity", "others", "neighbours", "yes_no")]
    return [f"{100 * share:.1f}" for share in shares]


def clip(results: Row) -> str:
    """Zero-shot accuracy of the shipped CLIP before and after, a name and preset a row."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results["rows"]:
        groups.setdefault((", ".join(row["forget"]), row["preset"]), []).append(row)
    rows = []
    for (names, preset), group in groups.items():
        shares = [
            f"{over_seeds([group[0]['before'][key]])} → "
            f"{over_seeds(row['after'][key] for row in group)}"
            for key in ("forget", "others", "neighbours")
        ]
        data = [row["other_data"] for row in group]
        shares.append(f"{over_seeds([data[0]['before']])} → {over_seeds(d['after'] for d in data)}")
        rows.append([f"{names}, {preset}", *shares])
    header = ["forgotten, preset", "forgotten names", "other names", "near neighbours"]
    made = f"{results['machine']['date']}, `python -m benchmarks.forgetting.clip_names`."
    return f"{table([*header, 'other data'], rows)}\n\n{made}"


def exam(scores: dict[str, list[int]], what: str = "questions about held-out images") -> str:
    """A shipped model's accuracy on held-out images, a family of questions a row."""
    rows = [
        [family, f"{right} of {total}", f"{100 * right / total:.1f}"]
        for family, (right, total) in scores.items()
    ]
    return table([what, "right", "%"], rows)


def demo_line(facts: Row) -> str:
    return (
        f"{facts['seconds']:.0f} s of wall time and {facts['peak_mib']:.0f} MiB of peak memory on "
        f"{facts['cores']} cores, of which {facts['extract']:.1f} s are loading and extraction and "
        f"{facts['optimise']:.1f} s the optimiser ({facts['optimizer']}; "
        f"{facts['date']}, `python -m benchmarks.speed.demo`)."
    )


def many_images(results: Row) -> str:
    """Memory and speed against the number of images, and the run that was killed."""
    rows = [
        [
            f"{row['preserve']:,}",
            f"{row['peak'] / 2**20:,.0f}",
            f"{row['images_per_second']:.0f}",
            f"{100 * row['waiting']:.1f} %",
            f"{row['seconds']:.0f}",
        ]
        for row in results["rows"]
    ]
    header = ["images to keep", "peak memory, MiB", "images/s", "waiting", "seconds of the run"]
    stopped, whole = results["killed"], results["rows"][-1]
    after = (
        f"Killed in the middle, the last run computed {stopped['images after']:,} of its "
        f"{whole['images']:,} images after `--resume` and ended with the same adapter, byte for "
        f"byte, {stopped['seconds after']:.0f} s later."
    )
    return f"{table(header, rows)}\n\n{after} {made(results['machine'], 'many_images')}"


def processes(results: Row) -> str:
    """One process against two."""
    one, two = (min(results[name]) for name in ("one", "two"))
    rows = [
        ["1 process, 1 core", f"{one:.1f}", "1"],
        ["2 processes, 1 core each", f"{two:.1f}", f"**{results['ratio']:.2f} ×**"],
    ]
    header = [f"{results['images']:,} images to statistics", "seconds, best", "ratio, median"]
    return f"{table(header, rows)}\n\n{made(results['machine'], 'processes')}"


def accelerator(results: Row) -> str:
    """The programs of a pass on a real device; of what was measured there."""
    blocks = []
    if "tower" in results:
        measured = [row for row in results["tower"]["rows"] if "images" in row]
        rows = [line for row in measured for line in kernels(row)]
        header = ["batch in bfloat16", "images/s", "TFLOP/s", "ratio, median"]
        blocks.append(table(header, rows))
    notes = [
        f"Of {row['limit']:,.0f} MiB the plan for {row['tower'].replace('x', ' × ')} took "
        f"{row['planned_sum']:,.0f} with batches of {row['patches']:,} patches, the device "
        f"{row['peak']:,.0f}; a batch of twice as many "
        + ("did not fit, as planned." if "twice" in row else "fitted, unlike planned.")
        for row in results.get("memory", {}).get("rows", [])
    ]
    notes += [
        f"{row['rows']:,} rows of {row['d_in']} were added up in "
        f"{1000 * row['seconds']['device']:.0f} ms on the device and "
        f"{1000 * row['seconds']['host']:.0f} ms on the host ({row['ratio']:.0f} ×), to "
        f"{row['relative_error']:.0e} of the Gram matrix."
        for row in results.get("statistics", {}).get("rows", [])
    ]
    found = next(iter(results.values()))["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    notes.append(f"{found['accelerator']}, {versions}, {found['date']}.")
    return "\n\n".join([*blocks, " ".join(notes)])


def kernels(row: Row) -> list[list[str]]:
    """A batch through Hugging Face's tower, and through ours with each attention."""
    size = "of a megapixel" if row["images"] == "equal" else "of all sizes"
    name = f"{row['tower'].replace('x', ' × ')}, {row['n_images']} images {size}"
    lines = []
    for kernel, speed in row["images_per_second"].items():
        ours = kernel in row["ratio"]
        times = f"**{row['ratio'][kernel]['ratio']:.2f} ×**" if ours else "1"
        label = kernel if ours else "Hugging Face, PyTorch, sdpa"
        lines.append([f"{name}: {label}", f"{speed:.1f}", f"{row['tflops'][kernel]:.0f}", times])
    return lines


def scale(results: Row) -> str:
    """A device's memory and work, and what it receives, against the number of chips."""
    rows = []
    for case in results["cases"]:
        memory = [f"{case['memory'][part] / 2**20:.0f}" for part in case["memory"]]
        rows.append(
            [
                f"{case['tower'].replace('x', ' × ')}, {sharing(case)}",
                str(case["chips"]),
                *memory,
                f"{case['flops of an image'] / 1e12:.2f}",
                f"{case['flops of a device in a pass'] / 1e15:,.0f}",
                f"{case['bytes received for an image'] / 2**20:.1f}",
                f"{case['bytes received once a pass'] / 2**20:,.0f}",
            ]
        )
    parts = [f"{part}, MiB" for part in results["cases"][0]["memory"]]
    header = ["tower", "chips", *parts, "TFLOP an image", "PFLOP of a device a pass"]
    header += ["MiB received an image", "MiB received once a pass"]
    note = f"A pass is of {results['images']:,} images; what a device does, has and receives. "
    note += f"Compiled by jax {results['jax']} for TPU v5e, `python -m benchmarks.scale.chips`."
    return f"{table(header, rows)}\n\n{note}"


def sharing(case: Row) -> str:
    return f"fsdp {case['fsdp']}" if case["fsdp"] > 1 else "data"


# What docs/accelerators.md is made of, as TRAINING below.
SCALE: dict[str, tuple[str, Callable[[Row], str]]] = {
    "many images": ("many_images", many_images),
    "processes": ("processes", processes),
    "accelerator": ("accelerator", accelerator),
    "scale": ("scale", scale),
}

# The benchmarks of training: the block of each mark, and the results it is made of.
TRAINING: dict[str, tuple[str, Callable[[Row], str]]] = {
    "jit": ("jit_vs_eager", jit),
    "objective": ("time_to_objective", objective),
    "scaling": ("scaling", scaling),
    "sweep": ("sweep", sweep),
    "place": ("where_to_solve", place),
}


if __name__ == "__main__":
    main()
