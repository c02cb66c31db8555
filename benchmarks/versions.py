"""Run the demo with other versions of Python and transformers, each in a fresh environment.

`.ci/matrix` runs this. Each environment installs this checkout and its dependencies from the
package index, without constraints.txt, runs `jax-unlearn demo`, compares our image processors with
those of its transformers, and is removed.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.markdown import caption, table_of

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "versions.json"
SHOWN = ("transformers", "jax", "flax", "numpy", "huggingface_hub")
OUTCOMES = re.compile(r"(\d+) (passed|failed|error)")
CASES = (
    ("3.11", "transformers==5.6.*"),
    ("3.11", "transformers==5.16.*"),
    ("3.11", "transformers==5.19.*"),
    ("3.11", "transformers"),
    ("3.12", "transformers"),
    ("3.13", "transformers"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "versions": {"jax-unlearn": version("jax-unlearn")},
    }
    rows = []
    for python, requirement in CASES:
        rows.append(measure(python, requirement))
        print(json.dumps(rows[-1]), flush=True)
        # After each row, since each takes minutes.
        results = {"machine": facts, "rows": rows}
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def processors(python: Path) -> dict[str, Any]:
    """Our image processors beside those of transformers with the PIL backend, in an environment.

    Args:
        python: the environment's interpreter; it needs pytest, but not torch or torchvision.

    Returns:
        The number of comparisons (each of several images) and of those that are `equal`, all bit
        for bit; or, as `failed`, why nothing was compared.
    """
    options = ("-q", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider")
    tests = ROOT / "tests" / "data" / "test_preprocess.py"
    command = [str(python), "-m", "pytest", *options, "-k", "of_transformers", str(tests)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    counts = {word: int(number) for number, word in OUTCOMES.findall(lines[-1] if lines else "")}
    if not counts.keys() & {"passed", "failed"}:
        why = [line for line in lines if line.startswith("E ")] or ["pytest ran nothing"]
        return {"failed": why[-1].removeprefix("E ").strip()}
    equal = counts.get("passed", 0)
    return {"compared": equal + counts.get("failed", 0), "equal": equal}


def measure(python: str, requirement: str) -> dict[str, Any]:
    """The demo's figures with one version of Python and of transformers, or why it `failed`."""
    interpreter = shutil.which(f"python{python}")
    if interpreter is None:
        return {"python": python, "asked": requirement, "failed": "no such Python on this machine"}
    with TemporaryDirectory() as folder:
        env, out = Path(folder, "env"), Path(folder, "demo")
        binaries = env / "bin"
        steps = (
            [interpreter, "-m", "venv", str(env)],
            [str(binaries / "pip"), "install", "--quiet", str(ROOT), requirement, "pytest"],
            [str(binaries / "jax-unlearn"), "demo", "--out", str(out)],
        )
        for step in steps:
            done = subprocess.run(step, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return {"python": python, "asked": requirement, "failed": why}
        listed = subprocess.run(
            [str(binaries / "pip"), "list", "--format", "json"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        metrics = json.loads((out / "metrics.json").read_text())
        adapter = (out / "adapter" / "adapter_model.safetensors").read_bytes()
        compared = processors(binaries / "python")
    found = {one["name"].lower().replace("-", "_"): one["version"] for one in json.loads(listed)}
    return {
        "python": python,
        "asked": requirement,
        "versions": {name: found.get(name, "–") for name in SHOWN},
        "forget": metrics["forget"],
        "preserve": metrics["preserve"],
        "objective": metrics["objective"]["total"],
        "adapter": hashlib.sha256(adapter).hexdigest(),
        "processors": compared,
    }


def processors_cell(row: dict[str, Any]) -> str:
    """How many comparisons of image processors were equal, or why there was none."""
    found = row.get("processors")
    if found is None:
        return "not compared"
    if "failed" in found:
        return f"nothing was compared: {found['failed']}"
    return f"{found['equal']} of {found['compared']} equal"


def table(results: dict[str, Any]) -> str:
    """The demo's figures, one row per version."""
    rows = []
    for row in results["rows"]:
        if "failed" in row:
            failed = f"**failed**: {row['failed']}"
            rows.append([row["python"], row["asked"], failed, "", "", "", "", ""])
            continue
        versions = [row["versions"][name] for name in SHOWN[:3]]
        shares = [
            f"{row[side]['accuracy_before']:.3f} → {row[side]['accuracy_after']:.3f}"
            for side in ("forget", "preserve")
        ]
        rows.append([row["python"], *versions, *shares, f"`{row['adapter'][:12]}`"])
        rows[-1].append(processors_cell(row))
    header = ["Python", *SHOWN[:3], "forget, by a probe", "preserve", "SHA-256 of the adapter"]
    header.append("image processors")
    return f"{caption(results['machine'], 'versions')}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
