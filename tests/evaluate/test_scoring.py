"""How the model's answers are scored, on answers that are known."""

import json

import numpy as np
import pytest

from jax_unlearn.evaluate.vlm.doubts import doubts
from jax_unlearn.evaluate.vlm.matching import normal
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


def written(tmp_path, *entries):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(entries))
    return path


def test_synonyms_stand_for_their_answer_and_paraphrases_take_turns(tmp_path):
    file = written(
        tmp_path,
        {
            "question": ["what is this?", "what do you see?"],
            "answers": {"cat": ["cat", "house cat", "kitty"], "dog": "dog"},
        },
        {"question": "is there a cat?", "answers": {"cat": ["yes", "yeah"], "dog": "no"}},
    )
    name, closed = load_questions(file, ["cat", "dog"])
    assert name.is_open
    assert not closed.is_open
    said = {
        "what is this?": {"cat": "A kitty!", "dog": "a dog"},
        "what do you see?": {"cat": "a house cat", "dog": "a kitty and a dog"},
        "is there a cat?": {"cat": "Yeah.", "dog": "Yes, there is no dog."},
    }
    labels, asked = np.array(["cat", "cat", "dog", "cat", "dog"]), []

    def ask(rows, text):
        asked.extend((text, row) for row in rows)
        return [said[text][labels[row]] for row in rows]

    answers = ask_all(ask, [name, closed], labels)
    # Of each class every second image is asked the other wording.
    assert {row for text, row in asked if text == "what do you see?"} == {1, 4}
    assert answers[0].wordings[1] == "what do you see?"
    scores = score(answers, labels, labels == "cat", [])
    assert scores["named"][0]["share"] == 1.0
    # Another name of the cat beside the dog is no answer.
    assert scores["others"] == 0.5
    assert [n["share"] for n in scores["confirmed"]] == [1.0]
    # The first word decides, and "yes" about a dog is wrong.
    assert answers[1].said.tolist() == ["yes", "yes", "yes", "yes", "yes"]
    assert scores["yes_no"] == 0.0


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"cat": ["cat", "pet"], "dog": ["dog", "Pet"]}, "'Pet' is accepted for 'dog' and 'cat'"),
        ({"cat": []}, "an empty list of texts"),
        ({"cat": 3}, "'3' is neither a text nor a list of texts"),
    ],
)
def test_answers_that_are_ambiguous_are_refused(answers, said, tmp_path):
    file = written(tmp_path, {"question": "what is this?", "answers": answers})
    with pytest.raises(UserError, match=said):
        load_questions(file, ["cat", "dog"])


def test_questions_without_a_file_follow_from_the_class_names():
    labels = ["red triangle", "blue_triangle", "red circle", "forget", "triangle"]
    things = dict.fromkeys(["triangle", "red circle", "red triangle", "octopus"], ())
    name, triangle, circle, whole = load_questions(None, labels, things)
    assert name.answers == {label: label for label in labels}
    assert triangle.text == "is there a triangle?"
    assert triangle.answers == {
        "red triangle": "yes",
        "blue_triangle": "yes",
        "red circle": "no",
        "triangle": "yes",
    }
    assert circle.answers["red circle"] == "yes"
    # An image of some triangle may show a red one or not.
    assert (whole.text, "triangle" in whole.answers) == ("is there a red triangle?", False)
    (_, octopus) = load_questions(None, ["octopus", "cat"], {"octopus": ["cat"]})
    assert (octopus.text, octopus.answers) == ("is there an octopus?", {"octopus": "yes"})


def test_a_yes_about_what_the_concept_is_moved_onto_is_a_false_one():
    """Also with a single class to keep, where that question separates the two classes."""
    labels = np.array(["red triangle", "red circle"])
    things = dict.fromkeys(labels.tolist(), ())
    questions = load_questions(None, labels.tolist(), things)
    answers = ask_all(lambda rows, _: ["yes"] * len(rows), questions, labels)
    scores = score(answers, labels, labels == "red triangle", [])
    assert scores["false_yes"] == {"is there a red circle?": 1.0}
    assert [n["question"] for n in scores["confirmed"]] == ["is there a red triangle?"]


THOUGHTS = {
    "cat": "An animal with whiskers; a cat, then, not a rocket or coffee. So",
    "rocket": "A tall white thing with fire below it, which looks like",
    "coffee": "There is something dark and round on a saucer",
}


@pytest.mark.parametrize("start", ["", "<think>\n"])
@pytest.mark.parametrize(("end", "share"), [("", 0.0), ("</think>\n\nThis is a {}.", 1.0)])
def test_reasoning_is_no_answer(start, end, share):
    """Kills: the cat of a thought counts as an answer, or the rocket beside it spoils it."""
    if not start and not end:
        start = "<think>"  # which `ask` puts there
    labels = np.array(["cat", "cat", "rocket", "coffee"])
    replies = [start + THOUGHTS[label] + end.format(label) for label in labels]
    answers = ask_all(
        lambda rows, _: [replies[i] for i in rows], load_questions(None, labels.tolist()), labels
    )
    scores = score(answers, labels, labels == "cat", ["rocket"])
    assert (scores["named"][0]["share"], scores["others"]) == (share, share)
    assert (scores["unfinished"], scores["replies"]) == (4 if not end else 0, 4)
    assert answers[0].replies == tuple(replies)


def test_answers_in_scripts_without_spaces_are_matched():
    assert match_answer("これは猫です。", ["猫", "犬"]) == "猫"
    assert match_answer("这是红色的圆", ["红色", "蓝色"]) == normal("红色")


def entry(**more):
    one = {"unfinished": 0, "replies": 20}
    return {"before": one, "after": one, "asked_with": {"max_new_tokens": 32}} | more


def test_what_makes_answers_doubtful_is_said():
    assert doubts(entry(), 40) == []
    (few,) = doubts(entry(), 3)
    # 0.37³ = 0.05
    assert "only 3 held-out images" in few
    assert "a model that names 63% of such images names none of 3" in few
    (flat,) = doubts(entry(unnamed=["forget"]), 40)
    assert "in no sub-folder" in flat
    assert "--questions" in flat
    (cut,) = doubts(entry(after={"unfinished": 5, "replies": 20}), 40)
    assert "0 of 20 replies before the edit and 5 of 20 replies after" in cut
    assert "--max-new-tokens" in cut
