"""Ask the questions of a benchmark, and score the replies by its own measures."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.matching import normal
from jax_unlearn.evaluate.vlm.model import VLM
from jax_unlearn.evaluate.vlm.reasoning import answer_of, is_unfinished
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.runtime.progress import progress_bar


@dataclass(frozen=True)
class Measure:
    """A benchmark's measure of a reply: its name there, how it is computed, the right answers."""

    name: str
    compute: Callable[[str, Sequence[str]], float]
    right: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """A question of a benchmark about an image, in each of its splits."""

    image: ImageFile
    splits: tuple[str, ...]
    task: str
    prompt: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark in files.

    Attributes:
        name: its name.
        path: the file or directory.
        items: its questions about images.
        unused: what else is there, with its number.
    """

    name: str
    path: Path
    items: tuple[Item, ...]
    unused: Counter[str] = field(default_factory=Counter)


def first_letter(reply: str, right: Sequence[str]) -> float:
    """1 if the first letter of a reply is that of the right choice."""
    letters = [c for c in reply.upper() if c.isalnum()]
    return float(letters[:1] == [right[0].upper()])


def contains(reply: str, right: Sequence[str]) -> float:
    """Share of the texts that a reply contains, in any case."""
    return sum(one.lower() in reply.lower() for one in right) / len(right)


def rouge_l(reply: str, right: Sequence[str]) -> float:
    """ROUGE-L F of a reply and the right answer: mean of precision and recall, harmonic."""
    precision, recall = _rouge_l(reply, right[0])
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def rouge_l_recall(reply: str, right: Sequence[str]) -> float:
    """ROUGE-L recall of the right answer in a reply."""
    return _rouge_l(reply, right[0])[1]


def _rouge_l(reply: str, right: str) -> tuple[float, float]:
    """(precision, recall) by the longest common subsequence of words, without stemming.

    C.-Y. Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.1.
    """
    said, wanted = normal(reply).split(), normal(right).split()
    if not said or not wanted:
        return 0.0, 0.0
    row = [0] * (len(wanted) + 1)
    for word in said:
        diagonal = 0
        for j, other in enumerate(wanted, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1] / len(said), row[-1] / len(wanted)


def examine_benchmark(
    benchmark: Benchmark, vlm: VLM, settings: AskSettings, console: Console
) -> tuple[dict[str, Any], str]:
    """Ask a model that has an adapter, with the adapter switched off and on.

    Returns:
        The entry `benchmark` of metrics.json without digests, and a JSON line for each reply.
    """
    items = benchmark.items
    replies: dict[str, list[str]] = {}
    with progress_bar(console) as bar:
        task = bar.add_task(f"Asking {benchmark.name}, before and after", total=2 * len(items))
        for when in ("before", "after"):
            with vlm.with_adapter(when == "after"):
                replies[when] = ask_items(items, vlm, settings, lambda n: bar.advance(task, n))
    values = {
        when: [
            {m.name: m.compute(answer_of(reply), m.right) for m in item.measures}
            for item, reply in zip(items, replies[when], strict=True)
        ]
        for when in replies
    }
    entry = {
        "name": benchmark.name,
        "path": str(benchmark.path.resolve()),
        "asked_with": settings.used(vlm),
        "splits": by_split(items, values),
        "unused": dict(benchmark.unused),
        "unfinished": {when: sum(map(is_unfinished, said)) for when, said in replies.items()},
    }
    rows = (
        {
            "image": item.image.name,
            "splits": item.splits,
            "task": item.task,
            "question": item.prompt,
            "right": {m.name: m.right for m in item.measures},
            **{when: {"reply": replies[when][i], "scores": values[when][i]} for when in replies},
        }
        for i, item in enumerate(items)
    )
    return entry, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def ask_items(
    items: Sequence[Item], vlm: VLM, settings: AskSettings, advance: Callable[[int], object]
) -> list[str]:
    """The replies to each item; items with the same prompt are asked together."""
    together: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        together[item.prompt].append(i)
    replies = [""] * len(items)
    for prompt, own in together.items():
        said = ask(
            vlm,
            [items[i].image for i in own],
            prompt,
            max_new_tokens=settings.new_tokens(vlm),
            batch_tokens=settings.batch_tokens,
            advance=advance,
        )
        for i, reply in zip(own, said, strict=True):
            replies[i] = reply
    return replies


def by_split(items: Sequence[Item], values: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means by split, task and measure, with the number of questions."""
    found: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for i, item in enumerate(items):
        for split in item.splits:
            of_task = found.setdefault(split, {}).setdefault(item.task, {})
            for name in values["before"][i]:
                of_name = of_task.setdefault(name, {"before": [], "after": []})
                for when, of_name_when in of_name.items():
                    of_name_when.append(values[when][i][name])
    return {
        split: {
            task: {
                name: {
                    "questions": len(both["before"]),
                    **{when: sum(all_of) / len(all_of) for when, all_of in both.items()},
                }
                for name, both in of_task.items()
            }
            for task, of_task in of_split.items()
        }
        for split, of_split in sorted(found.items())
    }
