"""The tiny Qwen3-VL's configuration and the files that describe its image and video pre-processing."""

from typing import TYPE_CHECKING, Any

from ftproject.engine.tiny.drawings import IMAGE_SIZE
from ftproject.engine.tiny.tokenizer import (
    END_OF_TURN,
    IMAGE_PAD,
    PADDING,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, Qwen2Tokenizer, Qwen3VLConfig

PATCH_SIZE = 16
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
GRID_SIDE = IMAGE_SIZE // PATCH_SIZE
IMAGE_TOKENS = (GRID_SIDE // MERGE_SIZE) ** 2
# A real Qwen3-VL also maps 0..1 to -1..1 instead of using ImageNet statistics.
PIXEL_MEAN = PIXEL_STD = 0.5

_TEXT_WIDTH = 128
_VISION_WIDTH = 96
_HEAD_WIDTH = 32


def tiny_config(tokenizer: "Qwen2Tokenizer") -> "Qwen3VLConfig":
    """Qwen3-VL's own configuration, shrunk to about 1.3 million parameters (2.6 MB in bfloat16)."""
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": _TEXT_WIDTH,
            "intermediate_size": 2 * _TEXT_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": _TEXT_WIDTH // _HEAD_WIDTH,
            "num_key_value_heads": 2,
            "head_dim": _HEAD_WIDTH,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
                "mrope_interleaved": True,
            },
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": _VISION_WIDTH,
            "intermediate_size": 2 * _VISION_WIDTH,
            "num_heads": _VISION_WIDTH // _HEAD_WIDTH,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "out_hidden_size": _TEXT_WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_PAD),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        tie_word_embeddings=True,
    )


def tiny_generation_config(tokenizer: "Qwen2Tokenizer") -> "GenerationConfig":
    """Greedy generation that ends with the turn, or with the text, as in a real Qwen3-VL folder."""
    from transformers import GenerationConfig

    padding = tokenizer.convert_tokens_to_ids(PADDING)
    return GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.convert_tokens_to_ids(END_OF_TURN), padding],
        pad_token_id=padding,
    )


def image_processor_config() -> dict[str, Any]:
    """`preprocessor_config.json`: every picture is brought to 4096 pixels, about 64x64."""
    return {
        **_shared_processor_config(),
        "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }


def video_processor_config() -> dict[str, Any]:
    """`video_preprocessor_config.json`: without it AutoProcessor fails wherever torchvision is installed."""
    return {
        **_shared_processor_config(),
        "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": 4 * IMAGE_SIZE**2},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }


def _shared_processor_config() -> dict[str, Any]:
    return {
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "processor_class": "Qwen3VLProcessor",
    }
