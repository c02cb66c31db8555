"""The families of questions, for training and for evaluation."""

from .images import CLASSES, COLORS, DRAWINGS, SHAPES

# The first phrasing of each family is written to questions.json.
NAME = ("what is this?", "what is in the image?", "what does the image show?")
SHAPE = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
)
COLOR = ("what color is the shape?", "what is the color of the shape?")
MEDIUM = ("is this a photo or a drawing?", "is this a drawing or a photo?")
PRESENT = (
    "is there a {} in the image?",
    "does the image contain a {}?",
    "is there a {}?",
    "is a {} present?",
)
ABSENT = (
    "is there not a {} in the image?",
    "does the image not contain a {}?",
    "is there not a {}?",
    "is no {} present?",
)
THINGS = (*SHAPES, *(f"{color} shape" for color in COLORS))

Pair = tuple[str, str]  # question, answer


def is_drawing(name: str) -> bool:
    return name in DRAWINGS


def shows(name: str, thing: str) -> bool:
    """Whether an image of class ``name`` shows ``thing``: "circle", "red shape", ..."""
    return is_drawing(name) and thing.removesuffix(" shape") in name.split()


def medium(name: str) -> str:
    return "drawing" if is_drawing(name) else "photo"


def families(name: str) -> dict[str, list[Pair]]:
    """Every question that an image of class ``name`` can be asked, by family."""
    asked = {
        "name": [(q, name) for q in NAME],
        "medium": [(q, medium(name)) for q in MEDIUM],
    }
    if is_drawing(name):
        color, shape = name.split()
        asked["shape"] = _shape_questions(color, shape)
        asked["color"] = _color_questions(color, shape)
    for thing in THINGS:
        asked.setdefault("yes", []).extend(_yes_no(name, thing, "yes"))
        asked.setdefault("no", []).extend(_yes_no(name, thing, "no"))
    return asked


def _shape_questions(color: str, shape: str) -> list[Pair]:
    return [(q, shape) for q in (*SHAPE, f"what is the {color} shape?")]


def _color_questions(color: str, shape: str) -> list[Pair]:
    about = (f"what color is the {shape}?", f"what is the color of the {shape}?")
    return [(q, color) for q in (*COLOR, *about)]


def _yes_no(name: str, thing: str, answer: str) -> list[Pair]:
    """The phrasings about ``thing`` to which ``answer`` is right for an image of ``name``."""
    phrasings = PRESENT if shows(name, thing) == (answer == "yes") else ABSENT
    return [(q.format(thing), answer) for q in phrasings]


def exam() -> list[dict[str, str | dict[str, str]]]:
    """The content of questions.json: each question with its right answer for each class."""
    rows = [
        (NAME[0], {name: name for name in CLASSES}),
        (SHAPE[0], {name: name.split()[1] for name in DRAWINGS}),
        (COLOR[0], {name: name.split()[0] for name in DRAWINGS}),
        (MEDIUM[0], {name: medium(name) for name in CLASSES}),
    ]
    for thing in THINGS:
        answers = {name: "yes" if shows(name, thing) else "no" for name in CLASSES}
        rows.append((PRESENT[0].format(thing), answers))
    return [{"question": question, "answers": answers} for question, answers in rows]
