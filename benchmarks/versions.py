"""Run the demo with other versions of Python and transformers, each in a fresh environment.

`.ci/matrix` runs this. Each environment installs this checkout and its dependencies from the
package index, without constraints.txt, runs `jax-unlearn demo`, and is removed.
"""

import argparse
import hashlib
import json
import os
import platform
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
            [str(binaries / "pip"), "install", "--quiet", str(ROOT), requirement],
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
    found = {one["name"].lower().replace("-", "_"): one["version"] for one in json.loads(listed)}
    return {
        "python": python,
        "asked": requirement,
        "versions": {name: found.get(name, "–") for name in SHOWN},
        "forget": metrics["forget"],
        "preserve": metrics["preserve"],
        "objective": metrics["objective"]["total"],
        "adapter": hashlib.sha256(adapter).hexdigest(),
    }


def table(results: dict[str, Any]) -> str:
    """The demo's figures, one row per version."""
    rows = []
    for row in results["rows"]:
        if "failed" in row:
            failed = f"**failed**: {row['failed']}"
            rows.append([row["python"], row["asked"], failed, "", "", "", ""])
            continue
        versions = [row["versions"][name] for name in SHOWN[:3]]
        shares = [
            f"{row[side]['accuracy_before']:.3f} → {row[side]['accuracy_after']:.3f}"
            for side in ("forget", "preserve")
        ]
        rows.append([row["python"], *versions, *shares, f"`{row['adapter'][:12]}`"])
    header = ["Python", *SHOWN[:3], "forget, by a probe", "preserve", "SHA-256 of the adapter"]
    return f"{caption(results['machine'], 'versions')}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
