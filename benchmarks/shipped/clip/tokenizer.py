"""CLIP's tokenizer, reduced to its most frequent merges, and the captions of the classes."""

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

# OpenAI's 49,408 embeddings (128 wide, float16) would take 12.6 MB for words that no caption has.
# The first merges alone are a valid BPE; rare words then have more tokens.
VOCABULARY = 4096
CONTEXT = 32
START, END = "<|startoftext|>", "<|endoftext|>"

NAME, ZERO_SHOT = "{}", "a photo of a {}."
TEMPLATES = (
    NAME,
    ZERO_SHOT,
    "a {}",
    "a {}.",
    "{}.",
    "the {}.",
    "a drawing of a {}.",
    "a drawing of the {}.",
    "a picture of a {}.",
    "a photo of a {}",
    "a photo of the {}.",
    "an image of a {}.",
    "a small {}.",
    "this is a {}.",
)


def build_tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """A tokenizer with OpenAI's order: bytes, bytes at the end of a word, merges, start, end."""
    letters = list(bytes_to_unicode().values())
    kept = merges[: VOCABULARY - 2 * len(letters) - 2]
    words = [*letters, *(f"{c}</w>" for c in letters), *map("".join, kept), START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=kept,
        model_max_length=CONTEXT,
    )
