"""Runs over a few of the shipped images on a tiny real checkpoint, through the command line."""

import json

CLASSES = {"forget": ["red triangle"], "preserve": ["blue circle", "astronaut"]}


def arguments(folder, out, **options):
    given = {
        "checkpoint": folder / "checkpoint",
        "forget": folder / "forget",
        "preserve": folder / "preserve",
        "out": out,
        "optimizer": "adam",
        "epochs": 30,
        "rank": 2,
    } | options
    flags = (
        [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        for key, value in given.items()
    )
    return ["run", *(part for flag in flags for part in flag)]


def read(path):
    return json.loads(path.read_text())
