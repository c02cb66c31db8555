"""Read the published layouts of MLLMU-Bench, CLEAR and FIUBench.

Only questions about images are read: the edit changes what a model sees, not what it answers to
text alone.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

from jax_unlearn.data.images import ImageFile, reason
from jax_unlearn.data.parquet import parquet_file, parquet_images
from jax_unlearn.data.scan import LeftOut
from jax_unlearn.evaluate.vlm.benchmark_scores import (
    Benchmark,
    Item,
    Measure,
    contains,
    first_letter,
    rouge_l,
    rouge_l_recall,
)
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import of_json, read_json, read_text

MLLMU, CLEAR, FIU = "MLLMU-Bench", "CLEAR", "FIUBench"
# The tasks of MLLMU-Bench, which are columns.
CHOICE, GENERATION, CLOZE = "Classification_Task", "Generation_Task", "Mask_Task"
IMAGE_AND_TEXT = "Image_Textual"
# Names of folders and files that are those of splits.
SPLIT = re.compile("forget|retain|real|test|full|celebrity", re.IGNORECASE)
# In place of the prompts of the benchmarks.
ONE_LETTER = "Answer with one letter."
ONLY_BLANK = "Answer only with what belongs in the place of [Blank]."
ONE_SENTENCE = "Answer in one sentence."
WHO, DESCRIBE = "What is the name of the person in the image?", "What does the image show?"
NO_TEXT = "questions about text alone, which the edit does not change"
NO_RATIO = "{} (probabilities of answers and truth ratios are not computed)"


@dataclass(frozen=True)
class ImageInRow(ImageFile):
    """An image whose bytes are in memory, from row `number` of a parquet file."""

    number: int
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return f"{super().name}[{self.number}]"

    def source(self) -> BytesIO:
        return BytesIO(self.data)


def read_benchmark(path: Path) -> Benchmark | None:
    """The benchmark in a file or directory; None for a file of other questions.

    Raises:
        UserError: a directory has none of the layouts, or two; or a file cannot be read.
    """
    if not path.is_dir():
        if path.suffix == ".parquet":
            return of_parquet(path, [path])
        entries = fiu_entries(path)
        return None if entries is None else of_fiu(path, path, entries)
    tables = sorted(path.rglob("*.parquet"))
    lists = [
        (file, entries)
        for file in sorted(path.rglob("*.json*"))
        if (entries := fiu_entries(file)) is not None
    ]
    if len(lists) + bool(tables) != 1:
        what = "several of them" if lists or tables else "none of them"
        raise UserError(
            f"--questions {path}: a directory must have one benchmark, and has {what}: parquet "
            f"files of {MLLMU} or {CLEAR}, or a JSON list of {FIU} with `qa_list`; give the file"
        )
    return of_parquet(path, tables) if tables else of_fiu(path, *lists[0])


def of_parquet(path: Path, tables: Sequence[Path]) -> Benchmark:
    """The benchmark in parquet files."""
    unused: Counter[str] = Counter()
    layouts: dict[str, list[Path]] = {}
    for table in tables:
        columns = columns_of(table)
        if columns & {CHOICE, GENERATION, CLOZE}:
            layouts.setdefault(MLLMU, []).append(table)
        elif "image" in columns and columns & {"caption", "answer"}:
            layouts.setdefault(CLEAR, []).append(table)
        else:
            unused["parquet files of another layout"] += 1
    if len(layouts) != 1:
        known = " and ".join(layouts) or "no benchmark that is known"
        raise UserError(
            f"--questions {path}: its columns are those of {known}; give the files of {MLLMU} "
            f"({CHOICE}, {GENERATION}, {CLOZE}) or of {CLEAR} (image with caption or answer)"
        )
    ((name, files),) = layouts.items()
    read = of_mllmu if name == MLLMU else of_clear
    items = chain.from_iterable(read(file, split_of(file), unused) for file in files)
    return checked(name, path, lambda: made(name, path, items, unused))


def columns_of(table: Path) -> set[str]:
    """The columns of a parquet file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with parquet_file(table) as file:
            return set(file.schema_arrow.names)
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: cannot be read ({reason(error)}); download it again") from error


def made(name: str, path: Path, items: Iterable[Item], unused: Counter[str]) -> Benchmark:
    """A benchmark of the items whose images can be read.

    Raises:
        UserError: there is none.
    """
    found = []
    for item in items:
        if item.image.contents.fault is None:
            found.append(item)
        else:
            unused["questions about images that cannot be read"] += 1
    if not found:
        why = ", ".join(f"{count} {what}" for what, count in unused.items()) or "it is empty"
        raise UserError(f"--questions {path}: {name} without a question about an image ({why})")
    return Benchmark(name, path, tuple(found), unused)


def split_of(table: Path) -> str:
    """The split of a parquet file: the nearest name in its path that is one, or its folder's."""
    names = [table.stem, *(parent.name for parent in table.parents)]
    return next((name for name in names if SPLIT.search(name)), table.parent.name or table.stem)


def rows_of(table: Path) -> Iterator[tuple[ImageFile, dict[str, Any]]]:
    """(image, other columns) of each row; the first of several images."""
    with parquet_file(table) as file:
        columns = file.schema_arrow.names
        others = [name for name in columns if name not in ("image", "images")]
        rows = file.read(columns=others).to_pylist()
        if "image" in columns:
            images: list[ImageFile] = list(parquet_images(table, "", LeftOut()))
        else:
            several = file.read(columns=["images"]).column("images").to_pylist()
            images = [
                ImageInRow(table, "", i, (of_row[0]["bytes"] or b"") if of_row else b"")
                for i, of_row in enumerate(several)
            ]
    yield from zip(images, rows, strict=True)


def of_mllmu(table: Path, split: str, unused: Counter[str]) -> Iterator[Item]:
    """The items of MLLMU-Bench; accuracies are shares."""

    def item(image: ImageFile, task: str, prompt: str, measure: Measure) -> Item:
        return Item(image, (split,), task, prompt, (measure,))

    for image, row in rows_of(table):
        choices = row.get(CHOICE) or {}
        unused[NO_TEXT] += len(choices.get("Pure_Text_Questions") or ())
        for one in choices.get("Image_Textual_Questions") or ():
            options = [f"{letter}: {text}" for letter, text in one["Options"].items() if text]
            prompt = "\n".join([one["Question"], *options, ONE_LETTER])
            accuracy = "Image-Textual Question Accuracy"
            measure = Measure(accuracy, first_letter, (one["Correct_Answer"],))
            yield item(image, "classification", prompt, measure)
        for one in about_images(row.get(CLOZE), unused):
            prompt = f"{one['Question'].replace('__', '[Blank]')}\n{ONLY_BLANK}"
            measure = Measure("image_textual_accuracy", contains, (one["Ground_Truth"],))
            yield item(image, "fill_in_the_blank", prompt, measure)
        for one in about_images(row.get(GENERATION), unused):
            name = "Average ROUGE-L (Image_Textual)"
            measure = Measure(name, rouge_l, (one["Ground_Truth"],))
            yield item(image, "generation", f"{one['Question']}\n{ONE_SENTENCE}", measure)


def about_images(
    entries: Sequence[Mapping[str, Any]] | None, unused: Counter[str]
) -> Iterator[Mapping[str, Any]]:
    """The entries of a task that are about an image."""
    for one in entries or ():
        if one["Type"] == IMAGE_AND_TEXT:
            yield one
        else:
            unused[NO_TEXT] += 1


def of_clear(table: Path, split: str, unused: Counter[str]) -> Iterator[Item]:
    """The items of CLEAR: captions and names of its people, answers about real ones."""
    for image, row in rows_of(table):
        given = {name for name, value in row.items() if value}
        tasks = {
            "captions": (DESCRIBE, row.get("caption")),
            "names": (WHO, row.get("name")),
            "answers": (row.get("question") or WHO, row.get("answer")),
        }
        asked = [(task, q, right) for task, (q, right) in tasks.items() if right]
        if image.contents.fault is not None and "question" in given:
            # As in its mixtures with TOFU.
            unused[NO_TEXT] += 1
            continue
        for name in given - {"caption", "name", "question", "answer"}:
            unused[NO_RATIO.format(name)] += 1
        for task, question, right in asked:
            measure = Measure("rougeL_recall", rouge_l_recall, (right,))
            yield Item(image, (split,), task, question, (measure,))


def fiu_entries(path: Path) -> list[Mapping[str, Any]] | None:
    """The people of FIUBench in a JSON list or JSON lines; None if the file has another content."""
    try:
        try:
            found = read_json(path)
        except ValueError:
            found = [of_json(line) for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError):
        # Whoever reads it as a file of questions says what is wrong.
        return None
    if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        return found if all("qa_list" in one and "image_path" in one for one in found) else None
    return None


def of_fiu(path: Path, file: Path, entries: Sequence[Mapping[str, Any]]) -> Benchmark:
    """FIUBench, whose splits are in split.json beside the file or above it."""
    unused: Counter[str] = Counter()
    lists = next((p / "split.json" for p in file.parents if (p / "split.json").is_file()), None)
    splits = read_json(lists) if lists is not None else {}
    if lists is None:
        unused["splits: no split.json beside the file or above it"] += 1

    def splits_of(one: Mapping[str, Any]) -> tuple[str, ...]:
        own = tuple(name for name, ids in splits.items() if one["unique_id"] in ids)
        return own or ("retain" if splits else "full",)

    def items() -> Iterator[Item]:
        for one in entries:
            image = ImageFile(find(file, one["image_path"]), "")
            for qa in one["qa_list"]:
                keywords = tuple(qa.get("keywords") or ())
                for name in set(qa) - {"question", "answer", "keywords", "paraphrased_question"}:
                    unused[NO_RATIO.format(name)] += 1
                measures = [Measure("rougeL_recall", rouge_l_recall, (qa["answer"],))]
                if keywords:
                    measures.append(Measure("exact_match", contains, keywords))
                yield Item(image, splits_of(one), "question", qa["question"], tuple(measures))
                wordings = qa.get("paraphrased_question") or ()
                wordings = [wordings] if isinstance(wordings, str) else wordings
                for wording in wordings if keywords else ():
                    ape = (Measure("ape", contains, keywords),)
                    yield Item(image, splits_of(one), "paraphrases", wording, ape)

    return checked(FIU, file, lambda: made(FIU, path, items(), unused))


def find(file: Path, image: str) -> Path:
    """An image whose path is relative to a folder at or above the file's."""
    parts = Path(image).parts
    folders = (file.parent, *list(file.parents)[1:4])
    places = (folder.joinpath(*parts[i:]) for folder in folders for i in range(len(parts)))
    return next((place for place in places if place.is_file()), file.parent / image)


def checked(name: str, file: Path, read: Callable[[], Benchmark]) -> Benchmark:
    """What `read` returns.

    Raises:
        UserError: the file has another content than that of the benchmark.
    """
    try:
        return read()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: not in the layout of {name} ({error!r})") from error
