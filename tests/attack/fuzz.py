"""Make hostile inputs of all families for as long as it is told, and count the faults by kind.

The figures are written after every round, so that a crash of the program leaves those before it.
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from benchmarks.harness import write
from benchmarks.speed.tower import machine
from jax_unlearn.runs.cli import main as jax_unlearn
from tests import running, tiny
from tests.attack.families import FAMILIES
from tests.attack.outcomes import fault_of
from tests.attack.place import prepare

# Faults of one kind that are described.
SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the figures")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="fuzz-") as directory:
        fuzz(Path(directory), given)


def fuzz(directory: Path, given: argparse.Namespace) -> None:
    tiny.model(tiny.config()).save_pretrained(directory / "model")
    images = running.write_samples(directory / "samples", directory / "model")
    jax_unlearn(running.arguments(images, directory / "run"))
    (directory / "attack").mkdir()
    place = prepare(images, directory / "run", directory / "attack")
    inputs: Counter[str] = Counter()
    faults: dict[str, Counter[str]] = defaultdict(Counter)
    examples: dict[str, list[str]] = defaultdict(list)
    begun, number = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < 60 * given.minutes:
        for family, count in FAMILIES.items():
            name = family.__name__
            for attack in family(place, random.Random(f"{given.seed}/{number}/{name}"), count):
                inputs[name] += 1
                if fault := fault_of(attack):
                    kind = fault.partition(":")[0]
                    faults[name][kind] += 1
                    if len(examples[f"{name}: {kind}"]) < SHOWN:
                        examples[f"{name}: {kind}"].append(
                            f"round {number}, {attack.what}: {fault}"
                        )
        # A program for each shape that was tried would fill the memory.
        jax.clear_caches()
        number += 1
        write(given.out, figures(given, time.monotonic() - begun, number, inputs, faults, examples))
    print(json.dumps({"seconds": passed, "inputs": sum(inputs.values()), "faults": faults}))


def figures(
    given: argparse.Namespace,
    seconds: float,
    rounds: int,
    inputs: Counter[str],
    faults: dict[str, Counter[str]],
    examples: dict[str, list[str]],
) -> dict[str, Any]:
    rows = [
        {
            "family": name,
            "inputs": count,
            "as_promised": count - faults[name].total(),
            "faults": dict(faults[name]),
        }
        for name, count in inputs.items()
    ]
    run = {
        "seed": given.seed,
        "minutes": seconds / 60,
        "rounds": rounds,
        "inputs": inputs.total(),
        "faults": sum(kinds.total() for kinds in faults.values()),
    }
    return {"machine": machine(), "runs": [run], "rows": rows, "examples": dict(examples)}


if __name__ == "__main__":
    main()
