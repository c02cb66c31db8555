"""CLIP's tokenizer, cut to its most frequent merges, and the captions of the classes."""

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

# OpenAI's 49,408 rows would be 12.6 MB of the checkpoint (128 wide, float16) for words that no
# caption has. The first merges alone are a CLIP BPE as well: a rare word is only more tokens.
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
    """Bytes, bytes that end a word, merges, start and end: OpenAI's order."""
    letters = list(bytes_to_unicode().values())
    kept = merges[: VOCABULARY - 2 * len(letters) - 2]
    words = [*letters, *(f"{c}</w>" for c in letters), *map("".join, kept), START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=kept,
        model_max_length=CONTEXT,
    )
