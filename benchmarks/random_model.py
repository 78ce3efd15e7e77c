"""Writes Qwen3-VL models of real shapes with random weights: nothing is downloaded, steps cost the same.

`python -m benchmarks.random_model 2b|8b|400m|tiny FOLDER`. The shapes are those of the published config.json files;
tokenizer and template are the bundled tiny model's, the vocabulary is padded to the real size.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ftproject.engine.configs import TINY_MODEL_PATH

REAL_VOCABULARY = 151_936
REAL_RULE = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
SHARD_BYTES = 4 * 2**30
ROPE = {"rope_type": "default", "rope_theta": 5_000_000, "mrope_interleaved": True, "mrope_section": [24, 20, 20]}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "2b": {
        "text": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "depth": 24,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "top": {"tie_word_embeddings": True},
    },
    "8b": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        "vision": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "depth": 27,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        "top": {"tie_word_embeddings": False},
    },
    "400m": {
        "text": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 14, "num_attention_heads": 16},
        "vision": {"hidden_size": 512, "intermediate_size": 1024, "depth": 4, "deepstack_visual_indexes": [1, 2, 3]},
        "top": {"tie_word_embeddings": True},
    },
    # For trying the benchmarks out on a CPU.
    "tiny": {
        "text": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
        "vision": {"hidden_size": 128, "intermediate_size": 256, "depth": 2, "deepstack_visual_indexes": [1]},
        "top": {"tie_word_embeddings": True},
    },
}


def config_of(shape: str) -> dict[str, Any]:
    """The config.json of a shape, with the special tokens of the tiny model's tokenizer."""
    parts = SHAPES[shape]
    config: dict[str, Any] = json.loads((TINY_MODEL_PATH / "config.json").read_text())
    heads = parts["text"]["num_attention_heads"]
    config["text_config"] |= parts["text"] | {
        "num_key_value_heads": min(8, heads),
        "head_dim": 128,
        "vocab_size": 4096 if shape == "tiny" else REAL_VOCABULARY,
        "max_position_embeddings": 262_144,
        "rope_parameters": ROPE,
        "tie_word_embeddings": parts["top"]["tie_word_embeddings"],
    }
    config["vision_config"] |= parts["vision"] | {
        "num_heads": 16 if shape != "tiny" else 2,
        "out_hidden_size": parts["text"]["hidden_size"],
        "num_position_embeddings": 2304,
    }
    return config | parts["top"]


def write_random_model(shape: str, folder: Path, *, seed: int = 0) -> int:
    """A complete model folder in bfloat16; returns its parameters. Weights pass through memory one shard at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    from ftproject.engine.merged_weights import shards_of
    from ftproject.engine.tensor_files import INDEX_FILE

    folder.mkdir(parents=True)
    for file in TINY_MODEL_PATH.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config_of(shape), indent=2))
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"size": REAL_RULE}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(folder))  # nosec B615
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}  # a tied lm_head is not named
    sizes = {name: 2 * torch.Size(shape_).numel() for name, shape_ in shapes.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    shards = shards_of(sizes, SHARD_BYTES)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(shapes[name], name, device, generator) for name in names}
        save_file(tensors, str(folder / file_name), metadata={"format": "pt"})
        places |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return int(sum(sizes.values()) // 2)


def _random(shape: tuple[int, ...], name: str, device: str, generator: Any) -> Any:
    """Matrices as at the start of a training; norms one, biases zero: activations stay finite through 36 layers."""
    import torch

    if len(shape) == 1:
        value = 0.0 if name.endswith("bias") else 1.0
        return torch.full(shape, value, dtype=torch.bfloat16)
    values = torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator)
    return (values * 0.02).cpu()


def main() -> None:
    shape, folder = sys.argv[1], Path(sys.argv[2])
    started = time.monotonic()
    parameters = write_random_model(shape, folder)
    print(json.dumps({"shape": shape, "parameters": parameters, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
