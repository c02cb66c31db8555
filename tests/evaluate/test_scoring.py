"""How the model's answers are scored, on answers that are known."""

import json

import numpy as np
import pytest

from jax_unlearn.evaluate.vlm.questions import Question, load_questions
from jax_unlearn.evaluate.vlm.scoring import ask_all, match_answer, naming, score
from jax_unlearn.runtime.errors import UserError

CLASSES = ("red triangle", "red circle", "blue triangle", "blue circle", "cat")
DRAWN = CLASSES[:4]
NAME = Question("what is this?", {c: c for c in CLASSES})
SHAPE = Question("what shape?", {c: c.split()[1] for c in DRAWN})
COLOR = Question("what color?", {c: c.split()[0] for c in DRAWN})
MEDIUM = Question("photo?", {c: "drawing" if c in DRAWN else "photo" for c in CLASSES})
TRIANGLE = Question("a triangle?", {c: "yes" if "triangle" in c else "no" for c in CLASSES})
ALL = [NAME, SHAPE, COLOR, MEDIUM, TRIANGLE]
LABELS = np.repeat(np.array(CLASSES), 2)


def names(concept):
    forget = {c for c in CLASSES if set(concept.split()) <= set(c.split())}
    return {n.text: n.chance for n in naming(ALL, forget, set(CLASSES) - forget)}


def test_which_questions_name_a_concept():
    assert names("triangle") == {"what is this?": 2 / 5, "what shape?": 1 / 2, "a triangle?": 1 / 2}
    assert names("cat") == {"what is this?": 1 / 5, "photo?": 1 / 2}
    # Neither shape nor colour names a red triangle alone; together they do.
    assert names("red triangle") == {"what is this?": 1 / 5, "what shape? + what color?": 1 / 4}


def scored(concept, answer, questions=ALL):
    """Scores of a model that says `answer(question, class)`."""

    def ask(rows, text):
        question = next(q for q in questions if q.text == text)
        return [answer(question, LABELS[i]) for i in rows]

    words = set(concept.split())
    is_forget = np.array([words <= set(label.split()) for label in LABELS])
    return score(ask_all(ask, questions, LABELS), LABELS, is_forget, ["red circle"])


def test_a_model_that_knows_everything():
    scores = scored("triangle", lambda question, label: question.answers[label])
    assert [n["share"] for n in scores["named"]] == [1.0, 1.0]
    assert [n["share"] for n in scores["confirmed"]] == [1.0]
    keys = ("selectivity", "others", "neighbours", "yes_no")
    assert [scores[key] for key in keys] == [1.0] * 4


def test_naming_the_concept_in_another_colour_is_still_naming_it():
    def answer(question, label):
        return "Blue triangle." if question is NAME else question.answers[label]

    assert scored("triangle", answer)["named"][0]["share"] == 1.0


def test_a_model_that_forgot_the_shape_but_kept_the_colour():
    def answer(question, label):
        return question.answers[label].replace("triangle", "circle").replace("yes", "no")

    scores = scored("triangle", answer)
    assert [n["share"] for n in scores["named"] + scores["confirmed"]] == [0.0] * 3
    # It renames: the report says to what.
    assert [n["instead"] for n in scores["named"]] == [
        {"red circle": 0.5, "blue circle": 0.5},
        {"circle": 1.0},
    ]
    assert scores["selectivity"] == 1.0
    assert scores["selectivity_of"] == {"what color?": 1.0, "photo?": 1.0}
    assert scores["others"] == 1.0


def test_selectivity_is_of_the_images_to_forget():
    """Kills: selectivity computed on preserve images."""

    def answer(question, label):
        wrong = question is COLOR and "triangle" in label
        return "green" if wrong else question.answers[label]

    scores = scored("triangle", answer)
    # The medium is right, the colour is not; on the images to keep both are.
    assert scores["selectivity"] == 0.5
    assert scores["selectivity_of"] == {"what color?": 0.0, "photo?": 1.0}
    assert scores["others_rest"] == 1.0
    # And the other way round.
    scores = scored("circle", answer)
    assert scores["selectivity"] == 1.0
    assert scores["others_rest"] == pytest.approx(1 - 4 / 10)


# Asked of the images to forget only.
CIRCLE = Question("a circle?", {"red triangle": "no", "blue triangle": "no"})


def test_a_false_yes_about_an_image_to_forget_is_counted():
    def answer(question, label):
        wrong = question is CIRCLE and label == "red triangle"
        return "yes" if wrong else question.answers[label]

    scores = scored("triangle", answer, [*ALL, CIRCLE])
    # The question about circles does not confirm a triangle, and no kept image is asked it.
    assert [n["question"] for n in scores["confirmed"]] == ["a triangle?"]
    assert scores["false_yes"] == {"a circle?": 0.5}
    assert scored("triangle", answer)["false_yes"] == {}


def test_a_pair_is_named_only_by_both_its_words():
    def answer(question, label):
        right = question.answers[label]
        return "green" if question is COLOR and label == "red triangle" else right

    scores = scored("red triangle", answer)
    shares = {n["question"]: n["share"] for n in scores["named"]}
    assert shares == {"what is this?": 1.0, "what shape? + what color?": 0.0}
    assert scores["neighbours"] == 1.0


def test_mistakes_about_preserved_classes_are_counted_where_they_belong():
    def answer(question, label):
        return "nothing" if label == "red circle" else question.answers[label]

    scores = scored("triangle", answer)
    assert scores["neighbours"] == 0.0
    # Two questions name it: cats are asked one of them, and 2 of 6 preserve images are wrong.
    assert scores["others"] == pytest.approx(1 - 4 / 10)
    assert scores["others_rest"] == pytest.approx(1 - 4 / 10)
    assert scores["yes_no"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Red circle.", "red circle"),
        ("The image shows a red circle on white.", "red circle"),
        ("It is a cat!", "cat"),
        ("a category of things", "a category of things"),
        ("a cat and a red circle", "a cat and a red circle"),
        ("", ""),
    ],
)
def test_a_sentence_is_understood_by_the_one_answer_in_it(said, meant):
    assert match_answer(said, CLASSES) == meant


def test_without_a_file_the_question_is_the_name():
    assert load_questions(None, ["cat"]) == [Question("what is this?", {"cat": "cat"})]


@pytest.mark.parametrize("content", ["[", "{}", '[{"question": "x"}]', "[1]"])
def test_a_file_that_is_not_a_list_of_questions_is_refused(tmp_path, content):
    path = tmp_path / "questions.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"questions\.json"):
        load_questions(path, ["cat"])


def test_questions_about_other_classes_are_refused(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"question": "x", "answers": {"dog": "dog"}}]))
    with pytest.raises(UserError, match="no question has an answer"):
        load_questions(path, ["cat"])
