"""Attacks on the Hugging Face model: what they change, that they undo it, and their controls."""

import numpy as np
import pytest
import torch
from PIL import Image

from jax_unlearn.attacks import in_context, quantisation, relearning, soft_prompt, survival
from jax_unlearn.attacks.edited_model import rates
from jax_unlearn.attacks.fine_tuning import (
    BATCH,
    PATIENCE,
    STEPS,
    Encoded,
    encode,
    linears_in,
    log_likelihoods,
    lora,
    mixed_batches,
    train,
    until_no_rise,
)
from jax_unlearn.attacks.never_trained import stars
from jax_unlearn.attacks.registry import EDITED
from jax_unlearn.attacks.summary import advantage
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.runtime.assets import ASSETS


def weights(model):
    return {name: p.detach().clone() for name, p in model.vlm.model.named_parameters()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def unchanged(attacked):
    """The model's weights are the same before and after a test."""
    before = weights(attacked.model)
    yield before
    assert same(before, weights(attacked.model))


def test_the_edit_can_be_scaled_and_taken_back(attacked, shipped, unchanged):
    base = load_vlm(ASSETS / "checkpoint").model
    peft = load_vlm(ASSETS / "checkpoint", shipped / "adapter").model.merge_and_unload()
    merged = dict(peft.named_parameters())
    assert same({k: v.detach() for k, v in merged.items()}, unchanged)
    with attacked.model.scaled(0.0):
        assert same(weights(attacked.model), dict(base.named_parameters()))
    with attacked.model.scaled(0.5):
        half = weights(attacked.model)
    (name, *_) = [k for k in attacked.model.original if k.endswith("merger.linear_fc2.weight")]
    middle = (dict(base.named_parameters())[name] + merged[name]) / 2
    torch.testing.assert_close(half[name], middle.detach())


def test_the_edited_model_no_longer_names_it_and_the_original_does(attacked, unchanged):
    test = attacked.split(0)[1]
    # Half of 12 held-out images of each class; the others are of two classes.
    assert test.counts == {"forget": 6, "counterpart": 6, "others": 12}
    edited = rates(attacked.model.vlm, attacked.naming, test)
    assert (edited["true_positive_rate"], edited["false_positive_rate"]) == (0, 0)
    assert edited["others"] >= 0.9
    with attacked.model.scaled(0.0):
        before = rates(attacked.model.vlm, attacked.naming, test)
    assert before["true_positive_rate"] == before["right_names"] == 1
    assert before["false_positive_rate"] == 0


def test_attackers_and_tests_share_no_image_and_none_is_of_the_edit(attacked):
    for seed in (0, 1):
        fit, test = attacked.split(seed)
        sides = [{f.path for f in (*s.forget, *s.counterpart, *s.others)} for s in (fit, test)]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {f.path for f in attacked.extracted.test.files}
        assert not (sides[0] | sides[1]) & {f.path for f in attacked.extracted.train.files}
    assert attacked.split(0)[0].forget != attacked.split(1)[0].forget


def test_rounding_keeps_the_largest_weight_of_a_group_and_the_levels():
    weight = torch.zeros(1, 40)
    weight[0, :4] = torch.tensor([7.0, 3.4, -2.6, 0.4])
    weight[0, 32] = -0.5
    expected = torch.zeros(1, 40)
    # 4 bits have 7 levels on each side; the second group has a scale of its own.
    expected[0, :4] = torch.tensor([7.0, 3.0, -3.0, 0.0])
    expected[0, 32] = -0.5
    assert torch.equal(quantisation.rounded(weight, 4), expected)


def test_the_formats_are_those_of_their_packages():
    assert {name for name, _ in quantisation.FORMATS.values()} == {"bitsandbytes", "torchao"}
    weight = torch.zeros(2, 64)
    weight[0, :4] = torch.tensor([0.5, -0.5, 0.5 * 0.723, 0.01])
    weight[1, :3] = torch.tensor([2.0, -1.0, 0.011])
    # The levels of nf4 are those of a normal distribution, the largest of 64 being one.
    by_four = quantisation.nf4(weight)
    assert by_four[0, :4].tolist() == pytest.approx([0.5, -0.5, 0.5 * 0.7229568, 0.0], abs=1e-6)
    assert by_four[1, :3].tolist() == pytest.approx([2.0, -1.0501461, 0.0], abs=1e-6)
    # One scale for each output, and 127 levels on each side.
    by_eight = quantisation.int8(weight)
    error = (by_eight - weight).abs().amax(dim=1)
    assert (error <= torch.tensor([0.5, 2.0]) / 127 / 2 + 1e-6).all()
    assert (error > 0).all()


def test_pruning_keeps_the_two_largest_of_four():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, -1.0, 0.1]])
    assert survival.pruned(weight).tolist() == [[0, -3, 2, 0, -1, pytest.approx(0.1)]]


def test_linears_that_are_changed_come_back(attacked, unchanged):
    with attacked.model.changed_linears(lambda weight: weight * 2):
        now = weights(attacked.model)
    linears = {f"{k}.weight" for k, m in attacked.model.vlm.model.named_modules()
               if isinstance(m, torch.nn.Linear)}  # fmt: skip
    assert {k for k in linears if not torch.equal(now[k], unchanged[k])} == linears


def test_fine_tuning_learns_the_answers_and_leaves_the_model_as_it_was(attacked, unchanged):
    vlm, (fit, _) = attacked.model.vlm, attacked.split(0)
    concept = [one for file in fit.forget for one in relearning.examples(attacked, file)]
    assert {one.answer for one in concept} == {"red triangle"}
    linears = relearning.in_language_model(attacked.model)
    assert linears
    assert not [name for name in linears if "visual" in name]
    with lora(vlm, linears, 0) as (model, parameters):
        encoded = [encode(model, one) for one in concept]
        before = log_likelihoods(model, encoded).mean()
        batches = mixed_batches(encoded, [], 0)
        assert [*train(model, parameters, batches, 2e-3, 30)] == [k for k in STEPS if k <= 30]
        assert log_likelihoods(model, encoded).mean() > before + 1


def test_likelihoods_are_those_of_the_model_without_padding(attacked):
    """One by one, an example has no padding."""
    vlm = attacked.model.vlm
    fit, _ = attacked.split(0)
    files = (fit.forget[0], next(file for file in fit.others if file.label == "astronaut"))
    both = [encode(vlm, one) for file in files for one in relearning.examples(attacked, file)]
    assert len({len(one.ids) for one in both}) == 2
    with torch.inference_mode():
        together = log_likelihoods(vlm, both)
        alone = torch.cat([log_likelihoods(vlm, [one]) for one in both])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_batches_are_half_of_the_concept():
    def examples(names):
        return [Encoded([ord(name)], 0, np.zeros((0, 1)), (1, 2, 2)) for name in names]

    batches = mixed_batches(examples("abc"), examples("0123456789xyz"), 0)
    for _ in range(5):
        batch = [chr(one.ids[0]) for one in next(batches)]
        # Fewer than half a batch of the concept, each once; the rest is of the others.
        assert sorted(batch[:3]) == ["a", "b", "c"]
        assert len(batch) == 3 + BATCH // 2
        assert not set(batch[3:]) & set("abc")


def row(true, false):
    return {"true_positive_rate": true, "false_positive_rate": false}


def test_training_goes_on_until_nothing_rises():
    # TPR alone rises at once, with the false positives.
    found = [row(0, 0), row(1, 1), row(1, 0.9), row(1, 1), row(0.5, 0.3), *[row(0.5, 0.31)] * 9]
    asked = iter(found)
    rows = until_no_rise(lambda: next(asked), iter(STEPS))
    best = [r["steps"] for r in rows if r["best"]]
    assert best == [STEPS[3]]
    assert advantage(rows[4]) == pytest.approx(0.2)
    # Few steps do not count as a stop: those up to 100 are all tried.
    assert rows[-1]["steps"] == STEPS[3 + PATIENCE]
    assert not any(r["still_rising"] for r in rows)
    rising = [row(k / 10, 0) for k in range(4)]
    asked = iter(rising)
    rows = until_no_rise(lambda: next(asked), iter(STEPS[:3]))
    assert [r["still_rising"] for r in rows] == [False, False, False, True]


def test_relearning_beside_its_controls(attacked, unchanged, monkeypatch):
    """Permuted labels come to nothing, and a class that was never trained takes more steps."""
    monkeypatch.setitem(relearning.STEPS, "small", 30)
    monkeypatch.setitem(relearning.IMAGES, "small", (4, 6, 64))
    assert relearning.numbers(attacked) == ([4, 6], [64])
    assert relearning.left_out(attacked)[0].startswith(
        "64 images: not tried: half of the held-out images"
    )
    trials = [t for t in relearning.trials(attacked) if t.setting["images"] == 6]
    assert [t.subject for t in trials] == [EDITED, *relearning.CONTROLS]
    found = {t.subject: t.measure() for t in trials}
    best = {who: max(map(advantage, rows)) for who, rows in found.items()}
    assert found[EDITED][0]["true_positive_rate"] == 0
    assert best[EDITED] >= 0.5
    assert best[relearning.PERMUTED] <= 0.2
    # As the model before the edit does: it knows the concept without a step.
    with attacked.model.scaled(0.0):
        trained = rates(attacked.model.vlm, attacked.naming, attacked.split(0)[1])
    assert advantage(trained) == 1 >= best[relearning.NEVER_TRAINED]
    assert found[relearning.NEVER_TRAINED][0]["true_positive_rate"] == 0


def test_stars_are_of_the_asked_size_and_differ():
    drawn = stars((40, 24), 0)
    one, two = next(drawn), next(drawn)
    assert one.size == two.size == (40, 24)
    assert one.tobytes() != two.tobytes()
    assert one.tobytes() == next(stars((40, 24), 0)).tobytes()
    # A page and one colour.
    assert len(one.getcolors()) > 2
    assert max(one.getcolors())[0] > 0.5 * 40 * 24


def test_a_soft_prompt_changes_answers_and_no_weight(attacked, unchanged):
    vlm = attacked.model.vlm
    token, text = soft_prompt.placeholder(vlm, ["what is this? red triangle"])
    assert vlm.tokenizer(text, add_special_tokens=False)["input_ids"] == [token] * 10
    image = Image.open(attacked.split(0)[1].others[0].path)
    encoded = encode(vlm, relearning.Example(image, text + "what is this?", "red triangle"))
    with soft_prompt.soft_prompt(vlm, token, 0) as vectors:
        first = log_likelihoods(vlm, [encoded])
        gradient = torch.autograd.grad(first.sum(), vectors)[0]
        assert bool((gradient.norm(dim=1) > 0).all())
        with torch.no_grad():
            vectors += 0.1 * gradient / gradient.norm()
        assert log_likelihoods(vlm, [encoded]) > first
        assert ask(vlm, [image], text + "what is this?") != [""]
    # Without the hook the placeholder is an ordinary token again.
    assert not vlm.model.get_input_embeddings()._forward_hooks


def test_examples_in_the_prompt_are_read(attacked, unchanged):
    """Without examples the answers are those of the question alone, image by image."""
    vlm = attacked.model.vlm
    images = [Image.open(file.path).convert("RGB") for file in attacked.split(0)[1].others[:4]]
    question = "what is this?"
    assert in_context.ask_after(vlm, [], images, question) == ask(vlm, images, question)
    shown = [(images[0], question, "red triangle")]
    assert in_context.ask_after(vlm, shown, images, question) != ask(vlm, images, question)


def test_the_language_model_and_the_mergers_are_told_apart(attacked):
    vlm = attacked.model.vlm
    language, mergers = linears_in(vlm, "language_model"), linears_in(vlm, "merger")
    assert language
    assert mergers
    assert not set(language) & set(mergers)
    assert np.all([".merger." in name for name in mergers])
