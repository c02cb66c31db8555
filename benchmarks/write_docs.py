"""Write the generated parts of the README and of docs/, from benchmarks/results/ and the code.

Each block is between two marks, `<!-- name -->` and `<!-- end name -->`; the module of a benchmark
formats its table. The program exits if two rows of a table are equal in all measured numbers
(`markdown.refuse_equal`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fuzz, settings_page, versions
from benchmarks.forgetting import (
    attacks,
    clip_names,
    ledger_steps,
    ledger_tables,
    linears,
    optimisers,
    stand_in_bent,
    stand_in_several,
    stand_in_tables,
    targets,
    tradeoff,
)
from benchmarks.markdown import Row, replace, table_of
from benchmarks.scale import (
    accelerator,
    chips,
    late_processes,
    many_images,
    many_requests,
    processes,
    real_size,
)
from benchmarks.shipped.clip import exam as clip_exam
from benchmarks.shipped.qwen3_vl import exam
from benchmarks.speed import clip_names as clip_speed
from benchmarks.speed import (
    demo,
    goals,
    jit_vs_eager,
    rows,
    solver_blas,
    stages,
    stand_in_size,
    startup,
    sweep,
    time_to_objective,
    tower,
    where_to_solve,
)
from jax_unlearn.runs.clients import rows as rows_of_clients

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Block:
    """A generated block between the marks `name` of a page, and the results it is made from."""

    page: str
    name: str
    results: tuple[str, ...]
    table: Callable[..., str]

    def content(self) -> str:
        return self.table(*map(read, self.results))


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def figures(tower: Row, sweep: Row, images: Row, device: Row) -> str:
    """The four speed figures of the README."""
    cpu = [row["ratio"] for row in tower["rows"] if row["dtype"] == "float32"]
    gpu = [
        (row["ratio"]["triton"]["ratio"], row["ratio"]["xla"]["ratio"])
        for row in device["tower"]["rows"]
        if "ratio" in row
    ]
    most, closed = images["rows"][-1], sweep["closed_form"]
    speed = "docs/results/speed.md"
    scale = "docs/results/scale.md"
    lines = [
        f"[the tower on a CPU]({speed}#the-tower) runs at {min(cpu):.2f} to {max(cpu):.2f} times "
        "the speed of Hugging Face's in PyTorch, in float32",
        f"[the tower on a GPU]({scale}#on-a-gpu), in bfloat16: {min(g[0] for g in gpu):.2f} times "
        f"with the Triton kernel, {min(g[1] for g in gpu):.2f} times with XLA's attention "
        f"({device['tower']['machine']['accelerator']})",
        f"[{closed['settings']} settings]({speed}#many-settings) in closed form take "
        f"{closed['ratio']:.1f} times as long as one",
        f"[{most['images']:,} images]({scale}#many-images) need "
        f"{most['peak'] / 2**20:,.0f} MiB at {most['images_per_second']:,.0f} images/s on "
        f"{images['machine']['cores']} cores, with the small model of the demo",
    ]
    return "\n".join(f"* {line}." for line in lines)


def clients() -> str:
    """The table of tools of docs/serve.md."""
    header = ["tool", "adapter", "merged checkpoint", "known by"]
    return table_of(header, rows_of_clients()).replace("---:", "---")


FORGETTING, SPEED, SCALE = (f"docs/results/{name}.md" for name in ("forgetting", "speed", "scale"))
LEDGER = "docs/results/ledger.md"
BLOCKS = (
    Block("README.md", "demo", ("demo",), demo.table),
    Block("README.md", "expect", ("forgetting",), targets.expected),
    Block("README.md", "figures", ("tower", "sweep", "many_images", "accelerator"), figures),
    Block(FORGETTING, "concepts", ("forgetting",), targets.default_table),
    Block(FORGETTING, "answers", ("forgetting",), targets.table),
    Block(FORGETTING, "optimisers", ("optimisers",), optimisers.table),
    Block(FORGETTING, "linears", ("linears",), linears.table),
    Block(FORGETTING, "tradeoff", ("tradeoff",), tradeoff.table),
    Block(FORGETTING, "readers", ("forgetting",), targets.readers),
    Block("docs/results/stand-in.md", "stand in", ("stand_in",), stand_in_tables.table),
    Block("docs/results/stand-in.md", "growth", ("stand_in",), stand_in_tables.growth_table),
    Block("docs/results/stand-in.md", "several", ("stand_in_several",), stand_in_several.table),
    Block("docs/results/stand-in.md", "bent", ("stand_in_bent",), stand_in_bent.table),
    Block("docs/results/attacks.md", "attacks", ("attacks",), attacks.table),
    Block("docs/results/attacks.md", "relearning", ("attacks",), attacks.relearning_table),
    Block(LEDGER, "ledger", ("ledger",), ledger_tables.table),
    Block(LEDGER, "ledger orders", ("ledger",), ledger_tables.orders),
    Block(LEDGER, "ledger undo", ("ledger",), ledger_tables.undone),
    Block("docs/ledger.md", "ledger steps", ("ledger_steps",), ledger_steps.table),
    Block("docs/results/clip.md", "clip", ("clip_forgetting",), clip_names.table),
    Block(SPEED, "goals", ("tower", "demo", "startup", "accelerator"), goals.table),
    Block(SPEED, "demo", ("demo",), demo.table),
    Block(SPEED, "demo stages", ("stages",), stages.demo_table),
    Block(SPEED, "startup", ("startup",), startup.table),
    Block(SPEED, "tower", ("tower",), tower.table),
    Block(SPEED, "clip names", ("clip_names_speed",), clip_speed.table),
    Block(SPEED, "jit", ("jit_vs_eager",), jit_vs_eager.table),
    Block(SPEED, "objective", ("time_to_objective",), time_to_objective.table),
    Block(SPEED, "scaling", ("scaling",), rows.table),
    Block(SPEED, "sweep", ("sweep",), sweep.table),
    Block(SPEED, "stand in size", ("stand_in_size",), stand_in_size.table),
    Block(SPEED, "solver blas", ("solver_blas",), solver_blas.table),
    Block(SPEED, "place", ("where_to_solve",), where_to_solve.table),
    Block(SCALE, "many images", ("many_images",), many_images.table),
    Block(SCALE, "many requests", ("many_requests",), many_requests.table),
    Block(SCALE, "real size", ("real_size",), real_size.table),
    Block(SCALE, "real size stages", ("stages",), stages.size_table),
    Block(SCALE, "processes", ("processes",), processes.table),
    Block(SCALE, "accelerator", ("accelerator",), accelerator.table),
    Block(SCALE, "scale", ("scale",), chips.table),
    Block("docs/shipped-models.md", "exam", ("exam",), exam.table),
    Block("docs/shipped-models.md", "clip exam", ("clip_exam",), clip_exam.table),
    Block("docs/serve.md", "clients", (), clients),
    Block("docs/input.md", "versions", ("versions",), versions.table),
    Block("docs/accelerators.md", "late", ("late_processes",), late_processes.table),
    Block("docs/security.md", "kills", ("kills",), fuzz.kills),
    Block("docs/security.md", "fuzz", ("fuzz",), fuzz.table),
    Block("docs/settings.md", "settings", (), settings_page.settings),
)
PAGES = tuple(dict.fromkeys(block.page for block in BLOCKS))


def written(page: str) -> str:
    """The text of a page with its generated parts up to date."""
    text = (ROOT / page).read_text()
    for block in BLOCKS:
        if block.page == page:
            text = replace(text, block.name, block.content())
    return text


def main() -> None:
    for page in PAGES:
        (ROOT / page).write_text(written(page))


if __name__ == "__main__":
    main()
