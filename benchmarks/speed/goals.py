"""The goals for speed beside what was measured, from the results of the other benchmarks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.markdown import table_of

# Dense bfloat16 of an H200 without sparsity, TFLOP/s (NVIDIA's data sheet).
PEAK = 989


class Goal(NamedTuple):
    """A bound on a measured figure; `least` if it is one from below. None is not measured."""

    name: str
    bound: float
    figure: float | None
    unit: str
    least: bool = True

    def row(self) -> list[str]:
        sign = "at least" if self.least else "at most"
        if self.figure is None:
            return [self.name, f"{sign} {self.bound:g}{self.unit}", "not measured", "–"]
        met = self.figure >= self.bound if self.least else self.figure <= self.bound
        shown = f"{self.figure:.2f}{self.unit}"
        return [self.name, f"{sign} {self.bound:g}{self.unit}", shown, "yes" if met else "no"]


def goals(
    tower: dict[str, Any], demo: dict[str, Any], startup: dict[str, Any], device: dict[str, Any]
) -> Iterator[Goal]:
    """Every goal with its figure."""
    cpu = {
        (one["model"], one["images"]): one["ratio"]
        for one in tower["rows"]
        if one["dtype"] == "float32"
    }
    for model in ("24 × 1024", "shipped"):
        for images, bound in (("equal", 1.15), ("mixed", 1.1)):
            name = f"tower on a CPU, {model}, {images} images, beside Hugging Face's"
            yield Goal(name, bound, cpu[model, images], " ×")
    gpu = {one["images"]: one for one in device["tower"]["rows"]}
    for images, bound in (("equal", 1.25), ("mixed", 1.2)):
        ratio = gpu[images]["ratio"]["triton"]["ratio"] if images in gpu else None
        yield Goal(f"tower on a GPU, {images} images, beside Hugging Face's", bound, ratio, " ×")
    share = gpu["equal"]["tflops"]["triton"] / PEAK
    yield Goal("tower on a GPU, share of its peak", 0.5, share, "")
    yield Goal("demo, compiled before", 10, demo["runs"][1]["seconds"], " s", least=False)
    help_seconds = next(
        one["cpu_seconds"] for one in startup["rows"] if one["start"] == "`jax-unlearn --help`"
    )
    yield Goal("`jax-unlearn --help`, CPU time", 0.7, help_seconds, " s", least=False)


def table(
    tower: dict[str, Any], demo: dict[str, Any], startup: dict[str, Any], device: dict[str, Any]
) -> str:
    """The goals as a table; dates and machines are those of the tables that they are from."""
    header = ["what", "goal", "measured", "met"]
    return table_of(header, [one.row() for one in goals(tower, demo, startup, device)])
