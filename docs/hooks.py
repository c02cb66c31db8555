"""mkdocs: the plots of benchmarks/results/, which pages show from where they lie."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# What a page of docs/results/ writes, so that the link works on GitHub too.
LINK = "../../benchmarks/results/"
FOLDER = "results/plots"
PLOTS = Path(__file__).parents[1] / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    for plot in sorted(PLOTS.glob("*.png")):
        files.append(File.generated(config, f"{FOLDER}/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    return markdown.replace(f"]({LINK}", "](plots/")
