"""What the rows of attacks come to: the strongest setting of each attack, beside its controls."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_unlearn.attacks.edited_model import BEFORE
from jax_unlearn.attacks.registry import EDITED, Row

# Of a row: what tells it from others of its trial.
DETAIL = ("pool", "reader", "labelled", "steps")
# Where the model before the edit names the concept in fewer of the images, an attack on the edited
# model shows nothing.
LEAST_BEFORE = 0.5
METRICS = (
    "true_positive_rate",
    "false_positive_rate",
    "others",
    "balanced",
    "auc",
)


@dataclass(frozen=True)
class Strongest:
    """An attack where it gains most.

    Attributes:
        setting: the trial's setting, and that of its best row.
        edited: the metrics on the edited model, averaged over seeds.
        controls: those of each control at the same setting of the trial.
        says_nothing: settings that are left out, as the model before the edit does not name the
            concept there.
    """

    setting: Mapping[str, Any]
    edited: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]]
    says_nothing: Sequence[str]


def advantage(row: Mapping[str, Any]) -> float:
    """TPR − FPR, which is 0 for a guess; of a balanced accuracy or an AUC a, 2 a − 1."""
    for name in ("balanced", "auc"):
        if row.get(name) is not None:
            return float(2 * row[name] - 1)
    return float(row["true_positive_rate"] - (row.get("false_positive_rate") or 0.0))


def in_words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def strongest(rows: Sequence[Row]) -> Strongest | None:
    """The setting at which the attack gains most; None if no setting says anything."""
    by_setting: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    settings: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        key = in_words(row["setting"])
        settings[key] = row["setting"]
        by_setting[key][row["subject"]].append(row)
    found: list[tuple[str, Row, dict[str, Row]]] = []
    says_nothing = []
    for key, subjects in by_setting.items():
        best = {subject: best_of(own) for subject, own in subjects.items()}
        before = best.get(BEFORE, {}).get("true_positive_rate")
        if before is not None and "others" in best[BEFORE] and before < LEAST_BEFORE:
            says_nothing.append(key)
        elif EDITED in best:
            controls = {name: row for name, row in best.items() if name != EDITED}
            found.append((key, best[EDITED], controls))
    if not found:
        return None
    key, edited, controls = max(found, key=lambda one: advantage(one[1]))
    detail = {name: value for name, value in edited.items() if name not in METRICS}
    return Strongest(
        {**settings[key], **detail},
        {name: edited[name] for name in METRICS if name in edited},
        {
            name: {metric: row[metric] for metric in METRICS if metric in row}
            for name, row in controls.items()
        },
        says_nothing,
    )


def best_of(rows: Sequence[Row]) -> Row:
    """The best row of each seed, averaged over the seeds; its details are those of the first."""
    by_seed: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(row)
    best = [max(own, key=advantage) for _, own in sorted(by_seed.items())]
    means = {
        metric: float(np.mean(values))
        for metric in METRICS
        if (values := [row[metric] for row in best if row.get(metric) is not None])
    }
    return {key: best[0][key] for key in DETAIL if key in best[0]} | means
