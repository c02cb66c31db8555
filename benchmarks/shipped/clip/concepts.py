"""The concepts of the drawings, and the icon sets they are from."""

from dataclasses import dataclass

from benchmarks.shipped.qwen3_vl.images import DRAWINGS as SHAPES


@dataclass(frozen=True)
class IconSet:
    """An npm package ``@iconify-json/<name>``, all of whose icons are by one artist."""

    name: str
    version: str
    licence: str
    split: str

    @property
    def ships(self) -> bool:
        """Whether the drawings may be shipped; share-alike drawings are used in training only."""
        return self.licence != "CC-BY-SA-4.0"


# Sets by one publisher (noto, fluent-emoji, emojione) are in the same split, as they look similar.
SETS = (
    IconSet("noto", "1.2.9", "Apache-2.0", "train"),
    IconSet("noto-v1", "1.2.5", "Apache-2.0", "train"),
    IconSet("fluent-emoji", "1.2.7", "MIT", "train"),
    IconSet("fluent-emoji-flat", "1.2.6", "MIT", "train"),
    IconSet("emojione", "1.2.3", "CC-BY-4.0", "train"),
    IconSet("emojione-v1", "1.2.3", "CC-BY-SA-4.0", "train"),
    IconSet("openmoji", "1.2.29", "CC-BY-SA-4.0", "train"),
    IconSet("twemoji", "1.2.5", "CC-BY-4.0", "test"),
    IconSet("fxemoji", "1.2.2", "Apache-2.0", "test"),
)

# Names of each concept's icons; "+" adds the concept's own name. fxemoji has names without hyphens.
ANIMALS = {
    "cat": "+ cat-face catside",
    "dog": "+ dog-face dogside",
    "rabbit": "+ rabbit-face bunny bunnyside",
    "horse": "+ horse-face horseface",
    "cow": "+ cow-face cowface",
    "pig": "+ pig-face pigside",
    "tiger": "+ tiger-face tigerside",
    "bear": "+ bear-face",
    "panda": "+ panda-face pandaface",
    "monkey": "+ monkey-face monkeyface",
    "penguin": "+",
    "frog": "+ frog-face",
    "turtle": "+",
    "snake": "+",
    "fish": "+ tropical-fish tropicalfish",
    "whale": "+ spouting-whale spurtingwhale",
    "octopus": "+",
    "elephant": "+",
    "bee": "honeybee",
    "ladybug": "+ lady-beetle ladybeetle",
}
FOOD = {
    "red apple": "+",
    "green apple": "+",
    "banana": "+",
    "lemon": "+",
    "orange": "tangerine",
    "watermelon": "+",
    "grapes": "+",
    "strawberry": "+",
    "cherries": "+",
    "pineapple": "+",
    "mushroom": "+",
    "pizza": "+ sliceofpizza",
    "hamburger": "+",
    "ice cream": "+ soft-ice-cream softicecream",
}
VEHICLES = {
    "car": "automobile oncoming-automobile oncomingautomobile",
    "taxi": "+ oncoming-taxi oncomingtaxi",
    "bus": "+ oncoming-bus oncomingbus",
    "truck": "delivery-truck articulated-lorry deliverytruck articulatedlorry",
    "bicycle": "+",
    "train": "+ locomotive steam-locomotive steamlocomotive",
    "airplane": "+",
    "helicopter": "+",
    "rocket": "+",
    "sailboat": "+",
}
THINGS = {
    "umbrella": "+ umbrella-with-rain-drops umbrellawithraindrops",
    "guitar": "+",
    "alarm clock": "+",
    "scissors": "+ blackscissors",
    "camera": "+ camera-with-flash camerawithflash",
    "light bulb": "+ electric-light-bulb",
    "balloon": "+",
    "crown": "+",
    "soccer ball": "+",
    "house": "+ house-building house-with-garden housewithgarden housebuilding",
    "palm tree": "+",
    "christmas tree": "+",
    "cactus": "+",
    "sunflower": "+",
    "rose": "+",
    "snowman": "+ snowman-without-snow snowmanwithoutsnow",
    "rainbow": "+",
    "red heart": "+ heavy-black-heart",
    "purple heart": "+ heartpurple",
    "green heart": "+ heartgreen",
    "yellow heart": "+ heartyellow",
}


def _icons(concept: str, names: str) -> tuple[str, ...]:
    own = (concept.replace(" ", "-"), concept.replace(" ", ""))
    listed = names.split()
    return tuple(dict.fromkeys((*(own if "+" in listed else ()), *(n for n in listed if n != "+"))))


CONCEPTS = {c: _icons(c, n) for c, n in (ANIMALS | FOOD | VEHICLES | THINGS).items()}
CLASSES = SHAPES + tuple(CONCEPTS)
