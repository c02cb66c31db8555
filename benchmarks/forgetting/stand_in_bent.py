"""Whether other fits to the stand-in hide a concept better than the solver's closed form.

The general three-term objective can be given the same goals, image by image; and the solver itself
can leave out its rounds of transport, which match the covariance. Both leave the cloud of the
concept smaller than that of the counterpart.

A change of `linear_fc2` alone maps the concept's embeddings by a linear map, which cannot bend one
cloud onto another. Here `linear_fc1`, before the GELU, is changed as well: from the closed form's
start, Adam reduces the sliced Wasserstein distance between the concept's and the counterpart's
images, pooled by mean, maximum and spread over their tokens, beside the change of images to keep.
Sliced Wasserstein: Bonneel, Rabin, Peyré, Pfister, "Sliced and Radon Wasserstein barycenters of
measures", 2015.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from benchmarks.forgetting.stand_in import QUIET, config_for, draw, with_photos
from benchmarks.forgetting.stand_in import Options as Drawings
from benchmarks.forgetting.stand_in_tables import found_cells
from benchmarks.forgetting.targets import machine
from benchmarks.markdown import caption, table_of
from jax_unlearn.evaluate.reidentification import TwoClasses, before_and_after
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.models.frozen_linear import projector_name
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import linear_problem
from jax_unlearn.objective.merger import FIRST, LAST, gelu
from jax_unlearn.runs.concepts import concepts_of
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.config import SolverConfig
from jax_unlearn.solvers.stand_in import ROUNDS, fit_stand_in

RESULTS = Path(__file__).parents[1] / "results" / "stand_in_bent.json"
CONCEPT, COUNTERPART = "triangle", "circle"
CLOSED = "`linear_fc2`, the solver"
BENT = "`linear_fc1` and `linear_fc2`, Adam from there"
POOLS = ("mean", "max", "spread")
RANK, DIRECTIONS, DRAWS = 32, 256, 5
Tree = dict[str, Any]


@dataclass
class Options:
    """Numbers of images, and how Adam is run."""

    train: int = 600
    """Drawings of the concept, and of its counterpart."""
    held_out: int = 600
    """Held-out drawings of each, half of which readers are fitted on."""
    steps: int = 500
    """Steps of Adam."""
    batch: int = 256
    """Images of each side in a step."""
    learning_rate: float = 2e-3
    """Its first value, of a cosine schedule."""
    keep: float = 4.0
    """Weight of the relative squared change of the outputs to keep."""
    pools: tuple[float, float, float] = (20.0, 1.0, 1.0)
    """Weights of the distances between means, maxima and spreads."""
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True)
class Merger:
    """A Merger from the input of its first Linear on, and tokens [n, T, D] of images there."""

    linears: tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    tokens: dict[str, jax.Array]

    def output(self, change: Tree | None, x: jax.Array) -> jax.Array:
        """Outputs [n, T, E], with a low-rank change of both Linears or without."""
        (w1, b1), (w2, b2) = self.linears
        before = x @ w1.T + b1
        if change is not None:
            before += x @ change["a1"].T @ change["b1"].T + change["c1"]
        hidden = gelu(before)
        out = hidden @ w2.T + b2
        if change is not None:
            out += hidden @ change["a2"].T @ change["b2"].T + change["c2"]
        return out


def pooled(out: jax.Array) -> Tree:
    """[n, E] by how the tokens of an image become one row."""
    return {
        "mean": out.mean(axis=1),
        "max": out.max(axis=1),
        # The derivative of a root at zero is infinite.
        "spread": jnp.sqrt(out.var(axis=1) + 1e-6),
    }


class Bent:
    """The Mergers of a run's tower, and the distance that Adam reduces."""

    def __init__(self, options: Options) -> None:
        self.options = options
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            drawn = Drawings(train=options.train, held_out=options.held_out)
            draw(folder, CONCEPT, COUNTERPART, drawn, options.seed, options.train)
            with_photos(folder)
            config = config_for(folder, CONCEPT, COUNTERPART)
            closed = QwenImages(config, QUIET).extract()
            self.adapters = closed_forms(closed, config)
            tokens = config.replace(
                target="near", stand_in=None, linears=(FIRST, LAST), optimizer="adam",
                granularity="tokens", rank=5,
            )  # fmt: skip
            extracted = QwenImages(tokens, QUIET).extract()
        self.mergers = mergers(extracted)
        self.starts = {
            edit: {
                name: start_of(adapter, name, merger, key)
                for key, (name, merger) in enumerate(self.mergers.items())
            }
            for edit, adapter in self.adapters.items()
        }
        # Each projector and pool with the same mean square within the classes.
        forget, other = (self.rows(None, side) for side in ("forget", "counterpart"))
        self.scale = {
            pool: [
                float(jnp.std(jnp.concatenate([f - f.mean(0), g - g.mean(0)]))) * f.shape[1] ** 0.5
                for f, g in zip(forget[pool], other[pool], strict=True)
            ]
            for pool in POOLS
        }
        self.goal = {pool: self.side_by_side(other, pool) for pool in POOLS}

    def rows(self, changes: Tree | None, side: str) -> Tree:
        """Rows [n, E] of each projector, by pool."""
        found = [
            pooled(one.output(changes and changes[name], one.tokens[side]))
            for name, one in self.mergers.items()
        ]
        return {pool: [one[pool] for one in found] for pool in POOLS}

    def side_by_side(self, rows: Tree, pool: str) -> jax.Array:
        scaled = [x / size for x, size in zip(rows[pool], self.scale[pool], strict=True)]
        return jnp.concatenate(scaled, axis=1)

    def loss(self, changes: Tree, forget: Tree, kept: Tree, goal: Tree, key: jax.Array) -> Any:
        rows = {name: pooled(one.output(changes[name], forget[name]))
                for name, one in self.mergers.items()}  # fmt: skip
        moved = {pool: [one[pool] for one in rows.values()] for pool in POOLS}
        total = jnp.float32(0)
        for number, (pool, weight) in enumerate(zip(POOLS, self.options.pools, strict=True)):
            z = self.side_by_side(moved, pool)
            directions = jax.random.normal(
                jax.random.fold_in(key, number), (z.shape[1], DIRECTIONS)
            )
            directions /= jnp.linalg.norm(directions, axis=0)
            gap = jnp.sort(z @ directions, axis=0) - jnp.sort(goal[pool] @ directions, axis=0)
            total += weight * z.shape[1] * (gap**2).mean()
        for name, one in self.mergers.items():
            before = one.output(None, kept[name])
            change = one.output(changes[name], kept[name]) - before
            total += self.options.keep * (change**2).sum() / (before**2).sum()
        return total

    def fit(self, console: Console) -> Tree:
        """The changes after Adam."""
        options, random = self.options, np.random.default_rng(self.options.seed)
        schedule = optax.cosine_decay_schedule(options.learning_rate, options.steps)
        adam = optax.adam(schedule)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(changes: Tree, state: Any, *batch: Any) -> Any:
            value, gradient = jax.value_and_grad(self.loss)(changes, *batch)
            update, state = adam.update(gradient, state)
            return optax.apply_updates(changes, update), state, value

        changes = jax.tree.map(jnp.copy, self.starts[CLOSED])
        state, key = adam.init(changes), jax.random.key(options.seed)
        for number in range(options.steps):
            forget, kept = self.batch(random, "forget"), self.batch(random, "preserve")
            chosen = random.choice(len(self.goal["mean"]), options.batch)
            goal = {pool: rows[chosen] for pool, rows in self.goal.items()}
            one = jax.random.fold_in(key, number)
            changes, state, value = step(changes, state, forget, kept, goal, one)
            if number % 100 == 0:
                console.print(f"step {number}: {float(value):.4f}")
        return changes

    def batch(self, random: np.random.Generator, side: str) -> Tree:
        count = len(next(iter(self.mergers.values())).tokens[side])
        chosen = random.choice(count, self.options.batch)
        return {name: one.tokens[side][chosen] for name, one in self.mergers.items()}

    def measured(self, changes: Tree | None) -> Tree:
        """Readers on held-out images, and drift of the held-out images to keep."""
        sides = [self.rows(changes, f"{side} test") for side in ("forget", "counterpart")]
        pairs = {
            pool: TwoClasses(*(np.asarray(self.side_by_side(side, pool)) for side in sides))
            for pool in POOLS
        }
        before, after = (self.rows(one, "preserve test")["mean"] for one in (None, changes))
        drift = [
            float((jnp.linalg.norm(y - x, axis=1) / jnp.linalg.norm(x, axis=1)).mean())
            for x, y in zip(before, after, strict=True)
        ]
        return {"drift": max(drift), "readers": before_and_after(pairs, pairs, DRAWS)}


def closed_forms(extracted: Extracted, config: RunConfig) -> dict[str, LoraAdapter]:
    """Changes of the last Linears alone, by how they are fitted."""
    (concept,) = concepts_of(extracted, config)
    kept = extracted.train.image_means().preserve
    same_goals = {
        name: linear_problem(
            one.weight, one.bias, one.forget, one.goal @ one.weight.T + one.bias,
            kept.taps[name].x,
        )
        for name, one in concept.items()
    }  # fmt: skip
    settings = SolverConfig(
        rank=RANK, lambda_forget=1.0, lambda_preserve=1.0, lambda_weight=0.01, reduction="mean"
    )
    own = {rounds: fit_stand_in([concept], RANK, 1.0, rounds) for rounds in (0, ROUNDS)}
    return {
        "`linear_fc2`, the three-term objective to the same goals": solve(
            same_goals, settings
        ).adapter,
        "`linear_fc2`, the solver without transport": own[0].adapter,
        CLOSED: own[ROUNDS].adapter,
    }


def mergers(extracted: Extracted) -> dict[str, Merger]:
    """The Mergers by projector, with the tokens of all groups."""
    linears = {one.name: one for one in extracted.linears}
    groups = {
        "forget": (extracted.train.forget, CONCEPT),
        "counterpart": (extracted.train.preserve, COUNTERPART),
        "preserve": (extracted.train.preserve, ""),
        "forget test": (extracted.test.forget, CONCEPT),
        "counterpart test": (extracted.test.preserve, COUNTERPART),
        "preserve test": (extracted.test.preserve, ""),
    }
    return {
        projector: Merger(
            tuple(
                (jnp.asarray(one.weight), jnp.asarray(one.bias))
                for one in (linears[f"{projector}.{FIRST}"], linears[f"{projector}.{LAST}"])
            ),  # type: ignore[arg-type]
            {
                group: tokens_of(features, f"{projector}.{FIRST}", word)
                for group, (features, word) in groups.items()
            },
        )
        for projector in dict.fromkeys(map(projector_name, linears))
    }


def tokens_of(features: SampleFeatures, name: str, word: str) -> jax.Array:
    """Tokens [n, T, D] of the images of the classes with a word; all images have equally many."""
    x = features.taps[name].x
    shown = [word in label for label in features.labels]
    return jnp.asarray(x.reshape(len(features.files), -1, x.shape[1])[shown])


def start_of(adapter: LoraAdapter, name: str, merger: Merger, seed: int) -> Tree:
    """The closed form's change of the last Linear, and none of the first."""
    pair, ((w1, _), (w2, _)) = adapter.pairs[f"{name}.{LAST}"], merger.linears
    scale = adapter.alpha / adapter.rank
    drawn = jax.random.normal(jax.random.key(seed), (RANK, w1.shape[1]))
    return {
        "a1": drawn / w1.shape[1] ** 0.5,
        "b1": jnp.zeros((len(w1), RANK)),
        "c1": jnp.zeros(len(w1)),
        "a2": jnp.asarray(pair.a),
        "b2": jnp.asarray(pair.b) * scale,
        "c2": jnp.zeros(len(w2)) if pair.bias is None else jnp.asarray(pair.bias),
    }


def table(results: dict[str, Any]) -> str:
    """Readers before the edit, after the closed form, and after Adam on both Linears."""
    header = ["edit", "10 labelled", "30 labelled", "100 labelled", "linear", "1-NN", "RBF"]
    rows = [
        [row["edit"], *found_cells([row["readers"]], "after")[2:], f"{100 * row['drift']:.1f}"]
        for row in results["rows"]
    ]
    about = caption(results["machine"], "forgetting.stand_in_bent")
    return f"{about}\n\n{table_of([*header, 'drift, %'], rows)}"


def main() -> None:
    options, console = tyro.cli(Options), Console(stderr=True)
    bent = Bent(options)
    rows = []
    begun = time.perf_counter()
    for edit, changes in ({"none": None} | bent.starts | {BENT: bent.fit(console)}).items():
        rows.append({"edit": edit, **bent.measured(changes)})
        console.print(f"{edit}: drift {rows[-1]['drift']:.3f}")
    facts = {name: getattr(options, name) for name in ("train", "steps", "batch", "keep", "pools")}
    found = {"machine": machine(), **facts, "seconds": time.perf_counter() - begun, "rows": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
