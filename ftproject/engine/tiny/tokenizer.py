"""Train the tiny Qwen3-VL's byte-level BPE tokenizer on its tasks' words, Qwen's special tokens first."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ftproject.engine.tiny.drawings import PROMPTS
from ftproject.engine.tiny.glyphs import LETTERS
from ftproject.engine.tiny.shapes import COLORS, SHAPES

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
SPECIAL_TOKENS = (
    PADDING,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    VIDEO_PAD,
)

# Qwen2's own pre-tokenizer pattern: every digit stands alone, letters stay with the blank before them.
_PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What users of the demo write and read, beside the tasks' own words.
_COMMON_TEXT = (
    "You are a helpful assistant.",
    "Which digit is shown in the image?",
    "Which digit is shown in the image? Answer with the digit.",
    "What digit is this? Answer with a single digit.",
    "Describe the image. Describe the picture briefly. Describe this image in one sentence.",
    "I see the circle to the left of the square. I see the star on top of the cross.",
    "What do you see in this picture? What is shown here? List the objects in the image.",
    "Is it true or false? Please answer yes or no only. Yes. No. True. False.",
    "Read the text in the image. Classify the image. What number is it? Explain why.",
    "zero one two three four five six seven eight nine ten",
)

_VOCABULARY_CEILING = 1024


def train_tokenizer() -> "Qwen2Tokenizer":
    """Train the tokenizer: deterministic, every word of the corpus ends as one token.

    Any text comes back from encoding and decoding byte for byte in its Unicode NFC form, as with Qwen's own.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    # Qwen2Tokenizer sets NFC on loading anyway: without it the built and the loaded tokenizer would differ.
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_CEILING,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
    )
    tokenizer.chat_template = chat_template()
    return tokenizer


def chat_template() -> str:
    """The Jinja source that turns messages into Qwen's turn format."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def _corpus() -> Iterator[str]:
    for _ in range(4):  # a pair must occur twice to be merged
        yield from ("system", "user", "assistant")
        yield from _COMMON_TEXT
        for prompts in PROMPTS.values():
            yield from (prompt.format(shape="", shapes="", item="") for prompt in prompts)
        for word in (*SHAPES, *COLORS, "circles squares triangles stars crosses diamonds"):
            yield from (word, f" {word}")
        yield " left of a above a yes no"
        yield from LETTERS
