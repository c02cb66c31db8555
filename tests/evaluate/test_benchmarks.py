"""Files in the layouts of MLLMU-Bench, CLEAR and FIUBench, with contents that are made up."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from jax_unlearn.evaluate.vlm import benchmark_scores
from jax_unlearn.evaluate.vlm.benchmark_scores import (
    contains,
    examine_benchmark,
    first_letter,
    rouge_l,
    rouge_l_recall,
)
from jax_unlearn.evaluate.vlm.benchmarks import read_benchmark
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.evaluate.vlm.questions import load_questions
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from tests.running import read

pytestmark = pytest.mark.filterwarnings("ignore:.*unpacked into a temporary file")
FILES = [ASSETS / "images" / "test" / name for name in ("cat/000.jpg", "red circle/000.png")]
IMAGES = [{"bytes": file.read_bytes(), "path": file.name} for file in FILES]
PERSON = {
    "ID": "001",
    "Classification_Task": {
        "Image_Textual_Questions": [
            {
                "Question": "Where does this person live?",
                "Options": {"A": "Oslo", "B": "Bern", "C": "Rome", "D": "Lima"},
                "Correct_Answer": "B",
            }
        ],
        "Pure_Text_Questions": [
            {
                "Question": "Where does Ada live?",
                "Options": {"A": "Oslo", "B": "Bern", "C": None, "D": None},
                "Correct_Answer": "B",
            }
        ],
    },
    "Mask_Task": [
        {
            "Question": "This person was born in __.",
            "Ground_Truth": "Bern",
            "Type": "Image_Textual",
        },
        {"Question": "Ada was born in __.", "Ground_Truth": "Bern", "Type": "Pure_Text"},
    ],
    "Generation_Task": [
        {
            "Question": "What does this person do?",
            "Ground_Truth": "She repairs old clocks.",
            "Type": "Image_Textual",
        }
    ],
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def mllmu(tmp_path):
    root = tmp_path / "MLLMU-Bench"
    write(root / "forget_10" / "train-00000-of-00001.parquet", [{**PERSON, "image": IMAGES[0]}])
    write(root / "Retain_Set" / "train-00000-of-00001.parquet", [{**PERSON, "image": IMAGES[1]}])
    write(root / "Test_Set" / "train-00000-of-00001.parquet", [{**PERSON, "images": IMAGES}])
    write(root / "ft_Data" / "train-00000-of-00001.parquet", [{"metadata": "[]"}])
    return root


@pytest.fixture
def fiu(tmp_path):
    root = tmp_path / "dataset"
    root.mkdir()
    (root / "images").mkdir()
    shutil.copy(FILES[0], root / "images" / "1.jpg")
    qa = {
        "question": "where does the person live?",
        "answer": "The person lives in Bern in Switzerland.",
        "keywords": ["Bern", "Switzerland"],
        "paraphrased_question": ["in which town is the home of the person?", "what is the home?"],
        "perturbed_answer": ["The person lives in Rome."],
    }
    people = [
        {"unique_id": "a", "image_path": "dataset/images/1.jpg", "qa_list": [qa], "caption": "x"},
        {"unique_id": "b", "image_path": "./dataset/images/1.jpg", "qa_list": [qa]},
        {"unique_id": "c", "image_path": "dataset/images/none.jpg", "qa_list": [qa]},
    ]
    (root / "full.json").write_text(json.dumps(people))
    splits = {"forget1": ["a"], "forget5": ["a", "c"]}
    (root / "split.json").write_text(json.dumps(splits))
    return root


def examined(benchmark, monkeypatch, said):
    """Scores and rows of a model that answers by what the prompt contains, and nothing after."""
    asked = []

    def ask(vlm, images, prompt, **options):
        asked.extend(images)
        answer = next(answer for part, answer in said.items() if part in prompt)
        known = len(asked) <= len(benchmark.items)
        return [f"<think>hm</think> {answer if known else ''}"] * len(images)

    monkeypatch.setattr(benchmark_scores, "ask", ask)
    vlm = load_vlm(ASSETS / "checkpoint")
    entry, lines = examine_benchmark(benchmark, vlm, AskSettings(), Console(quiet=True))
    return entry, [json.loads(line) for line in lines.splitlines()]


def test_mllmu_bench(mllmu, monkeypatch):
    benchmark = read_benchmark(mllmu)
    assert benchmark.name == "MLLMU-Bench"
    assert [item.splits for item in benchmark.items[::3]] == [
        ("Retain_Set",),
        ("Test_Set",),
        ("forget_10",),
    ]
    choice, blank, sentence = (item.prompt for item in benchmark.items[:3])
    assert choice.splitlines()[:3] == ["Where does this person live?", "A: Oslo", "B: Bern"]
    assert blank.startswith("This person was born in [Blank].")
    assert sentence.startswith("What does this person do?")
    # One choice and one blank of each split are about text alone.
    assert benchmark.unused == {
        "parquet files of another layout": 1,
        "questions about text alone, which the edit does not change": 6,
    }
    said = {
        "Where": "**b**: Bern",
        "born": "It is bern, I think",
        "do?": "She repairs the old clocks",
    }
    entry, rows = examined(benchmark, monkeypatch, said)
    forget = entry["splits"]["forget_10"]
    assert forget["classification"] == {
        "Image-Textual Question Accuracy": {"questions": 1, "before": 1.0, "after": 0.0}
    }
    assert forget["fill_in_the_blank"]["image_textual_accuracy"]["before"] == 1.0
    # 4 of 5 words said, and 4 of 4 wanted: 2 · 0.8 · 1 / 1.8.
    generated = forget["generation"]["Average ROUGE-L (Image_Textual)"]
    assert generated["before"] == pytest.approx(0.8 * 2 / 1.8)
    assert set(entry["splits"]) == {"forget_10", "Retain_Set", "Test_Set"}
    assert len(rows) == 9
    assert rows[0]["before"]["reply"].startswith("<think>")


def test_clear(tmp_path, monkeypatch):
    person = {"caption": "Ada waters a tree.", "name": "Ada Berg", "image": IMAGES[0]}
    row = person | {"perturbed_names": ["Eva Holm"]}
    write(tmp_path / "forget10_perturbed" / "train.parquet", [row])
    write(tmp_path / "retain90" / "train.parquet", [person | {"image": IMAGES[1]}])
    real = {"image": IMAGES[1], "answer": "Ivo Kern", "options": ["Ivo Kern", "Leo Bach"]}
    write(tmp_path / "real_faces" / "train.parquet", [real])
    text = {"image": None, "caption": None, "question": "Who is Ada?", "answer": "A gardener."}
    mixed = [person | {"question": None, "answer": None}, text]
    write(tmp_path / "forget01+tofu" / "train.parquet", mixed)
    benchmark = read_benchmark(tmp_path)
    assert benchmark.name == "CLEAR"
    assert {(*item.splits, item.task) for item in benchmark.items} == {
        ("forget10_perturbed", "captions"),
        ("forget10_perturbed", "names"),
        ("retain90", "captions"),
        ("retain90", "names"),
        ("real_faces", "answers"),
        ("forget01+tofu", "captions"),
        ("forget01+tofu", "names"),
    }
    assert sum(benchmark.unused.values()) == 3
    assert any(what.startswith("perturbed_names (") for what in benchmark.unused)
    said = {"name": "This is Ada Berg, and Ivo", "show": "Somebody waters it."}
    splits = examined(benchmark, monkeypatch, said)[0]["splits"]
    assert splits["forget10_perturbed"]["names"]["rougeL_recall"]["before"] == 1.0
    assert splits["forget10_perturbed"]["captions"]["rougeL_recall"]["before"] == 0.25
    assert splits["real_faces"]["answers"]["rougeL_recall"]["before"] == 0.5


@pytest.mark.parametrize("lines", [False, True])
def test_fiubench(lines, fiu, monkeypatch):
    if lines:
        people = read(fiu / "full.json")
        (fiu / "full.json").write_text("\n".join(map(json.dumps, people)))
    benchmark = read_benchmark(fiu)
    assert (benchmark.name, len(benchmark.items)) == ("FIUBench", 6)
    assert [item.splits for item in benchmark.items[::3]] == [("forget1", "forget5"), ("retain",)]
    assert benchmark.unused["questions about images that cannot be read"] == 3
    said = {"where": "in Bern in Switzerland", "town": "In bern.", "what": "No idea."}
    splits = examined(benchmark, monkeypatch, said)[0]["splits"]
    assert set(splits) == {"forget1", "forget5", "retain"}
    own = splits["forget5"]
    assert own["question"]["exact_match"] == {"questions": 1, "before": 1.0, "after": 0.0}
    assert own["question"]["rougeL_recall"]["before"] == pytest.approx(4 / 7)
    # Of two keywords one in one wording, none in the other.
    assert own["paraphrases"]["ape"] == {"questions": 2, "before": 0.25, "after": 0.0}


def test_the_measures():
    assert first_letter("(C) Rome", "C") == 1.0
    assert first_letter("Rome", "C") == 0.0
    assert first_letter("", "C") == 0.0
    assert contains("in BERN", ("bern", "rome")) == 0.5
    # Lin's example: police killed the gunman / police kill the gunman / the gunman kill police.
    reference = ("police killed the gunman",)
    assert rouge_l("police kill the gunman", reference) == 0.75
    assert rouge_l("the gunman kill police", reference) == 0.5
    assert rouge_l_recall("police", reference) == 0.25
    assert rouge_l("", reference) == rouge_l_recall("", reference) == 0.0


def test_what_is_no_benchmark_is_said(tmp_path, fiu, mllmu):
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([{"question": "what?", "answers": {"cat": "cat"}}]))
    assert read_benchmark(questions) is None
    with pytest.raises(UserError, match="must have one benchmark, and has several of them"):
        read_benchmark(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must have one benchmark, and has none of them"):
        read_benchmark(tmp_path / "empty")
    with pytest.raises(UserError, match="no benchmark that is known"):
        read_benchmark(mllmu / "ft_Data")
    people = read(fiu / "full.json")
    del people[0]["qa_list"][0]["answer"]
    (fiu / "full.json").write_text(json.dumps(people))
    with pytest.raises(UserError, match=r"full\.json: not in the layout of FIUBench"):
        read_benchmark(fiu)
    broken = tmp_path / "empty" / "forget.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"forget\.parquet: cannot be read"):
        read_benchmark(broken)


def test_a_file_that_is_nested_too_deeply_is_no_benchmark(tmp_path):
    """As JSON and as JSON lines; whoever reads it as a file of questions says what is wrong."""
    path = tmp_path / "questions.json"
    for text in ("[" * 10**5, "[]\n" + "[" * 10**5):
        path.write_text(text)
        assert read_benchmark(path) is None
        with pytest.raises(UserError, match="not a list of"):
            load_questions(path, ["cat"])
