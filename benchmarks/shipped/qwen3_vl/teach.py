"""Second stage: train the whole model to answer; the loss covers the answers' tokens only."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from .batches import Sampler
from .images import CLASSES
from .model import GRID, MERGED, BatchedTower, patchify
from .pretrain import Log, one_cycle, optimizers, set_rate
from .questions import families, is_drawing

ASKED = 5  # questions per image in a batch, which share the tower's forward pass
WEIGHTS = {
    True: {"name": 0.25, "shape": 0.15, "color": 0.1, "medium": 0.05, "yes": 0.225, "no": 0.225},
    False: {"name": 0.5, "medium": 0.15, "yes": 0.15, "no": 0.2},
}


@dataclass(frozen=True)
class Lessons:
    """Every question with its answer, as tokens padded on the right.

    ``tokens`` [L, T]; ``answers`` bool [L, T], the tokens in the loss; ``table`` [C, draws],
    for each class the lessons to sample from, in proportion to the weights of their families.
    """

    tokens: Tensor
    answers: Tensor
    table: Tensor


def lessons(tokenizer: PreTrainedTokenizerFast, seed: int, draws: int = 4096) -> Lessons:
    """The lessons of all classes, without duplicates."""
    pairs = sorted({p for name in CLASSES for asked in families(name).values() for p in asked})
    numbers = {pair: i for i, pair in enumerate(pairs)}
    generator = torch.Generator().manual_seed(seed)
    table = []
    for name in CLASSES:
        asked, weights = families(name), WEIGHTS[is_drawing(name)]
        each = {numbers[p]: w / len(asked[f]) for f, w in weights.items() for p in asked[f]}
        pick = torch.multinomial(
            torch.tensor(list(each.values())), draws, True, generator=generator
        )
        table.append(torch.tensor(list(each))[pick])
    return Lessons(*_tokens(tokenizer, pairs), torch.stack(table))


def _tokens(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    prompts = [
        tokenizer(prompt(tokenizer, q), add_special_tokens=False).input_ids for q, _ in pairs
    ]
    replies = [tokenizer(f"{a}<|im_end|>", add_special_tokens=False).input_ids for _, a in pairs]
    longest = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
    tokens = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    answers = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (asked, reply) in enumerate(zip(prompts, replies, strict=True)):
        end = len(asked) + len(reply)
        tokens[row, :end] = torch.tensor(asked + reply)
        answers[row, len(asked) : end] = True
    return tokens, answers


def prompt(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """The prompt of an image and a question, with placeholders for the image's tokens."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text.replace("<|image_pad|>", "<|image_pad|>" * MERGED)


class Answerer(nn.Module):
    """Runs the language model on several questions per image, with one tower pass per image."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, tokens: Tensor) -> None:
        super().__init__()
        self.model = model
        self.tower = BatchedTower(model.model.visual)
        # Every prompt begins with the image, so all rows have the same positions.
        row = tokens[:1]
        image = row == model.config.image_token_id
        grid = torch.tensor([[1, GRID, GRID]])
        positions, _ = model.model.get_rope_index(row, image.int(), image_grid_thw=grid)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """uint8 [B, 64, 64, 3] and tokens [B, ASKED, T] -> last hidden states [B * ASKED, T, H]."""
        asked = tokens.shape[1]
        seen = [x.repeat_interleave(asked, 0).flatten(0, 1) for x in self.tower(patchify(pixels))]
        tokens = tokens.flatten(0, 1)
        mask = tokens == self.model.config.image_token_id
        embeds = self.model.get_input_embeddings()(tokens)
        return self.model.model.language_model(
            inputs_embeds=embeds.masked_scatter(mask[..., None], seen[0]),
            position_ids=self.positions.expand(-1, len(tokens), -1),
            visual_pos_masks=mask,
            deepstack_visual_embeds=seen[1:],
            use_cache=False,
        ).last_hidden_state

    def loss(self, pixels: Tensor, tokens: Tensor, answers: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        hidden = self(pixels, tokens)[:, :-1]
        wanted = answers.flatten(0, 1)[:, 1:]
        logits = self.model.lm_head(hidden[wanted])
        return functional.cross_entropy(logits, tokens.flatten(0, 1)[:, 1:][wanted])


def teach(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    sampler: Sampler,
    steps: int,
    log: Log,
    batch: int = 96,
    peak: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train ``model`` in place, the tower at a fifth of the language model's rate."""
    school = lessons(tokenizer, seed)
    answerer = Answerer(model, school.tokens)
    named = list(model.named_parameters())
    tower = optimizers([(n, p) for n, p in named if ".visual." in n], peak)
    rest = optimizers([(n, p) for n, p in named if ".visual." not in n], peak)
    start, recent = time.time(), []
    for step in range(steps):
        rate = one_cycle(step, steps, peak)
        set_rate(tower, rate / 5)
        set_rate(rest, rate)
        pixels, labels = sampler(batch)
        draw = torch.randint(school.table.shape[1], (batch, ASKED), generator=sampler.generator)
        chosen = school.table[labels[:, None], draw]
        loss = answerer.loss(pixels, school.tokens[chosen], school.answers[chosen])
        loss.backward()
        for stepper in tower + rest:
            stepper.step()
            stepper.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = sum(recent) / len(recent)
            log(f"answers {step + 1}/{steps} {time.time() - start:.0f}s loss {mean:.4f}")
            recent = []
