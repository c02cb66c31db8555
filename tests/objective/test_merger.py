"""The loss through a Merger against PyTorch in float64, written from what the Merger computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_unlearn import merger_tokens, train
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import compress
from jax_unlearn.objective.loss import LossWeights, shapes
from jax_unlearn.objective.merger import FIRST, LAST, gelu, gelu_change, merger_problem
from tests.objective.test_loss import close
from tests.problems import published, value_and_gradient

D_IN, HIDDEN, E, RANK = 16, 12, 8, 3
SHAPES = {FIRST: (HIDDEN, D_IN), LAST: (E, HIDDEN)}
ONE, BOTH = (FIRST,), (FIRST, LAST)
CASES = [
    pytest.mark.parametrize("linears", [ONE, BOTH], ids=["fc1", "both"]),
    pytest.mark.parametrize("rows", ["tokens", "images"]),
    pytest.mark.parametrize("reduction", ["sum", "mean"]),
]


def every_case(test):
    for case in CASES:
        test = case(test)
    return test


class Case:
    """Arrays of one Merger; images have from one to four tokens."""

    def __init__(self, rows: str) -> None:
        random = np.random.default_rng(3)
        draw = random.normal
        self.weights = [
            draw(size=shape).astype(np.float32) / 3
            for shape in ((HIDDEN, D_IN), (HIDDEN,), (E, HIDDEN), (E,))
        ]
        self.image = [np.repeat(np.arange(n), random.integers(1, 5, size=n)) for n in (9, 15)]
        self.x = [draw(size=(len(i), D_IN)).astype(np.float32) for i in self.image]
        self.row = self.image if rows == "images" else [np.arange(len(i)) for i in self.image]
        self.target = draw(size=(self.row[0][-1] + 1, E)).astype(np.float32)
        self.grouped = rows == "images"

    def problem(self, linears):
        w1, b1, w2, b2 = self.weights
        forget, preserve = (
            merger_tokens(w1, b1, x, row if self.grouped else None)
            for x, row in zip(self.x, self.row, strict=True)
        )
        return {"merger": merger_problem(w2, b2, forget, self.target, preserve, linears)}


def adapter(linears, b_scale=1.0, scale=0.7):
    random = np.random.default_rng(1)
    pairs = {}
    for linear in linears:
        e, d_in = SHAPES[linear]
        a, b = random.normal(size=(RANK, d_in)) / 3, b_scale * random.normal(size=(e, RANK)) / 3
        pairs[f"merger.{linear}"] = LoraPair(a=a.astype(np.float32), b=b.astype(np.float32))
    return LoraAdapter(pairs, alpha=scale * RANK, rank=RANK)


def torch_factors(adapter):
    """{linear: [A, B]} in float64, to be differentiated."""
    return {
        name.rpartition(".")[2]: [
            torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
            for x in (pair.a, pair.b)
        ]
        for name, pair in adapter.pairs.items()
    }


def torch_terms(case, factors, scale, reduction):
    """New outputs minus the target and minus the old outputs, each the mean of its row's tokens."""
    w1, b1, w2, b2 = (torch.tensor(w, dtype=torch.float64) for w in case.weights)

    def changed(linear, x):
        if linear not in factors:
            return torch.zeros(())
        a, b = factors[linear]
        return scale * x @ (b @ a).T

    def rows(y, row):
        of = torch.tensor(row == np.arange(row[-1] + 1)[:, None], dtype=torch.float64)
        return of @ y / of.sum(dim=1, keepdim=True)

    def outputs(side):
        x = torch.tensor(case.x[side], dtype=torch.float64)
        inner = x @ w1.T + b1
        old = torch.nn.functional.gelu(inner) @ w2.T + b2
        hidden = torch.nn.functional.gelu(inner + changed(FIRST, x))
        new = hidden @ w2.T + b2 + changed(LAST, hidden)
        return rows(old, case.row[side]), rows(new, case.row[side])

    _, new_forget = outputs(0)
    old, new = outputs(1)
    forget, preserve = torch.norm(torch.tensor(case.target) - new_forget), torch.norm(old - new)
    if reduction == "mean":
        forget, preserve = forget / len(new_forget) ** 0.5, preserve / len(new) ** 0.5
    weight = sum(torch.norm(b @ a) for a, b in factors.values())
    return torch.stack([1.3 * forget, 0.4 * preserve, weight])


@every_case
def test_loss_and_gradient_are_torchs(linears, rows, reduction):
    case, ours = Case(rows), adapter(linears)
    factors = torch_factors(ours)
    theirs = torch_terms(case, factors, ours.scale, reduction)
    theirs.sum().backward()
    weights = LossWeights(1.3, 0.4, 1.0, reduction)
    (_, terms), gradient = value_and_gradient(ours, case.problem(linears), weights)
    for mine, other in zip(terms, theirs, strict=True):
        close(mine, other.item())
    for linear, (a, b) in factors.items():
        close(gradient.pairs[f"merger.{linear}"].a, a.grad)
        close(gradient.pairs[f"merger.{linear}"].b, b.grad)


@every_case
def test_an_adapter_that_changes_nothing_keeps_everything_exactly(linears, rows, reduction):
    case, ours = Case(rows), adapter(linears, b_scale=0.0)
    problem, kept = case.problem(linears), LossWeights(0.0, 0.4, 1.0, reduction)
    (_, terms), gradient = value_and_gradient(ours, problem, kept)
    assert np.all(np.asarray(terms) == 0)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradient))

    factors = torch_factors(ours)
    torch_terms(case, factors, ours.scale, reduction).sum().backward()
    weights = LossWeights(1.3, 0.4, 1.0, reduction)
    gradient = value_and_gradient(ours, problem, weights)[1]
    for linear, (_, b) in factors.items():
        close(gradient.pairs[f"merger.{linear}"].b, b.grad)
        assert b.grad.abs().max() > 0


def test_no_step_is_no_change_even_where_the_gelu_was_rounded_otherwise():
    x, zero = jnp.linspace(-6.0, 6.0, 1001), jnp.zeros(1001)
    before = jnp.nextafter(gelu(x), jnp.inf)
    assert np.all(np.asarray(gelu_change(x, before, zero)) == 0)
    slope = jax.vmap(jax.grad(gelu_change, argnums=2))(x, before, zero)
    inputs = torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
    torch.nn.functional.gelu(inputs).sum().backward()
    close(slope, inputs.grad)


@pytest.mark.parametrize(("linears", "rows"), [(ONE, "tokens"), (BOTH, "images")])
def test_a_hundred_steps_follow_the_torch_loop(linears, rows):
    config = published(rank=RANK, epochs=100, chunk=30, seed=5)
    case = Case(rows)
    problem = case.problem(linears)
    history = train(problem, config).history

    start = config.init(problem)
    factors = torch_factors(start)
    adam = torch.optim.Adam([x for pair in factors.values() for x in pair], lr=0.01)
    for row in history:
        total = torch_terms(case, factors, start.scale, "sum").sum()
        assert row["total"] == pytest.approx(total.item(), rel=1e-4)
        adam.zero_grad()
        total.backward()
        adam.step()
    assert len(history) == 101
    assert history[-1]["total"] < history[0]["total"] - 0.05


@pytest.mark.parametrize("rows", ["tokens", "images"])
def test_some_of_the_rows_are_the_problem_of_these_rows(rows):
    case, ours = Case(rows), adapter(BOTH)
    problem = case.problem(BOTH)["merger"]
    counts = [row[-1] + 1 for row in case.row]
    masks = [np.arange(n) % 3 != 1 for n in counts]
    part = problem.take(*masks)

    for side, mask in enumerate(masks):
        row = case.row[side]
        kept = mask[row]
        case.x[side] = case.x[side][kept]
        case.row[side] = np.unique(row[kept], return_inverse=True)[1]
    case.target = case.target[masks[0]]
    weights = LossWeights(1.3, 0.4, 1.0, "mean")
    (_, alone), _ = value_and_gradient(ours, case.problem(BOTH), weights)
    (_, terms), _ = value_and_gradient(ours, {"merger": part}, weights)
    close(terms, alone)


def test_shapes_are_those_of_the_adapted_linears_and_rows_do_not_compress():
    case = Case("images")
    for linears in (ONE, BOTH):
        problem = case.problem(linears)
        assert shapes(problem) == {f"merger.{name}": SHAPES[name] for name in linears}
        assert compress(problem)["merger"] is problem["merger"]
