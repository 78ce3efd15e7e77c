"""The installed Unsloth, asked about itself: the arguments we pass, the modules it would choose, the mask it makes.

Runs wherever unsloth is installed, with or without a GPU, in a process of its own: importing it patches transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.configs import LoraSettings
from ftproject.engine.models import UNQUANTISED_MODULES, lora_target_regex
from tests.engine.conformance import unsloth_on_cpu
from tests.engine.conformance.test_modules import FLAGS, LEGAL, flags
from tests.engine.support import TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed"),
]
QUESTIONS = """
import inspect, json, sys
from unsloth import FastVisionModel
from unsloth.trainer import UnslothVisionDataCollator
import transformers.integrations.bitsandbytes as quantising
from unsloth_zoo.vision_utils import UnslothVisionDataCollator as BaseCollator
from unsloth_zoo.peft_utils import SKIP_QUANTIZATION_MODULES, get_peft_regex
import torch
from transformers import AutoConfig, Qwen3VLForConditionalGeneration
from ftproject.engine.processors import load_processor

config = AutoConfig.from_pretrained(sys.argv[1])
with torch.device("meta"):
    model = Qwen3VLForConditionalGeneration(config)
processor = load_processor(sys.argv[1])
collate = UnslothVisionDataCollator(
    model, processor, max_seq_length=200, resize="max", train_on_responses_only=True,
    instruction_part="<|im_start|>user\\n", response_part="<|im_start|>assistant\\n",
)
text = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}
batch = collate([{"messages": [text("user", "one assistant"), text("assistant", "two\\n\\nthree")], "images": []}])
linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
def arguments(function):
    return {name: str(value.kind) for name, value in inspect.signature(function).parameters.items()}
print("ANSWER" + json.dumps({
    "from_pretrained": arguments(FastVisionModel.from_pretrained),
    "get_peft_model": arguments(type(FastVisionModel).mro(FastVisionModel)[2].get_peft_model),
    "for_training": arguments(FastVisionModel.for_training),
    "for_inference": arguments(FastVisionModel.for_inference),
    "collator": arguments(BaseCollator.__init__),
    "unquantised": [name for name in linear if not quantising.should_convert_module(name, SKIP_QUANTIZATION_MODULES)],
    "linear": linear,
    "regexes": [get_peft_regex(model, **flags) for flags in json.loads(sys.argv[2])],
    "kept": processor.tokenizer.decode([t for t in batch["labels"][0].tolist() if t != -100]),
}))
"""


@pytest.fixture(scope="module")
def unsloth(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("unsloth")
    wanted = json.dumps([flags(bits) for bits in LEGAL])
    done = subprocess.run(
        [sys.executable, "-c", unsloth_on_cpu.DECLARATION + QUESTIONS, TINY, wanted],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=folder,
        env=os.environ | unsloth_on_cpu.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("ANSWER"))


PASSED = {
    "from_pretrained": "max_seq_length load_in_4bit load_in_16bit use_gradient_checkpointing use_exact_model_name",
    "get_peft_model": "target_modules target_parameters r lora_alpha lora_dropout bias random_state use_rslora",
    "for_training": "model",
    "for_inference": "model",
    "collator": "max_seq_length resize train_on_responses_only instruction_part response_part",
}


@pytest.mark.parametrize("function", PASSED)
def test_every_argument_we_pass_exists(unsloth: Any, function: str) -> None:
    assert set(PASSED[function].split()) <= unsloth[function].keys()


def test_checkpointing_can_be_turned_off_where_the_adapter_is_added(unsloth: Any) -> None:
    assert "use_gradient_checkpointing" in unsloth["get_peft_model"]


def test_what_it_does_not_name_it_hands_on_to_transformers(unsloth: Any) -> None:
    assert "VAR_KEYWORD" in " ".join(unsloth["from_pretrained"].values())  # use_safetensors


@pytest.mark.parametrize("place", range(9))
def test_it_would_choose_the_modules_that_we_name(unsloth: Any, place: int) -> None:
    lora = LoraSettings(**dict(zip(FLAGS, LEGAL[place], strict=True)))
    chosen = {name for name in unsloth["linear"] if re.match(unsloth["regexes"][place], name)}
    assert chosen == {name for name in unsloth["linear"] if re.fullmatch(lora_target_regex(lora), name)}


def test_it_leaves_unquantised_what_we_leave(unsloth: Any) -> None:
    ours = [name for name in unsloth["linear"] if any(name.startswith(part) for part in UNQUANTISED_MODULES)]
    assert unsloth["unquantised"] == ours


def test_its_own_mask_is_ours_without_the_newline_behind_the_end(unsloth: Any) -> None:
    assert unsloth["kept"] == "two\n\nthree<|im_end|>"
