"""Lets the installed Unsloth run without CUDA, for these tests only (docs/decisions/008-unsloth-on-cpu.md).

Asked for with QWEN3VL_TEST_UNSLOTH_ON_CPU=1 in an environment that has unsloth; must run before transformers, TRL and
PEFT are imported. What is replaced: two questions to the GPU at loading, the Triton loss, and the default of half
precision. Everything else is Unsloth's own code, uncompiled.
"""

from __future__ import annotations

import os
from typing import Any

SWITCH = "QWEN3VL_TEST_UNSLOTH_ON_CPU"
ENVIRONMENT = {
    "UNSLOTH_ALLOW_CPU": "1",
    "UNSLOTH_SKIP_TORCHVISION_CHECK": "1",
    "UNSLOTH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}

# torchvision's wheel is built for CUDA torch: beside a CPU build its import misses these two operators.
DECLARATION = """
import torch
torch.torchvision_declarations = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    torch.torchvision_declarations.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def wanted() -> bool:
    """Whether this test run asked for it."""
    return os.environ.get(SWITCH) == "1"


def enable() -> None:
    """Imports unsloth and replaces what needs a GPU."""
    os.environ.update(ENVIRONMENT)
    exec(DECLARATION, {})  # noqa: S102 - a constant of this file
    import torch
    import unsloth
    import unsloth.kernels.cross_entropy_loss as losses
    import unsloth.models.rl as trainers
    import unsloth.models.vision as vision
    import unsloth.trainer as trainer_patches

    # Left out with UNSLOTH_ALLOW_CPU: the trainer of a GPU run is the one that it generates from TRL's.
    trainer_patches._patch_trl_trainer()
    trainers.patch_trl_rl_trainers()

    vision.get_device_stats = lambda: ("cpu", "no CUDA", 0.0)
    vision.verify_fp8_support_if_applicable = lambda *_, **__: None
    losses.Fast_CrossEntropyLoss = _CrossEntropy
    load = unsloth.FastVisionModel.from_pretrained

    def load_in_float32(*args: Any, **options: Any) -> Any:
        return load(*args, **options | {"dtype": torch.float32})

    unsloth.FastVisionModel.from_pretrained = staticmethod(load_in_float32)


class _CrossEntropy:
    """Stands for the Triton kernel's autograd function: a loss per token."""

    @staticmethod
    def apply(logits: Any, labels: Any, *_: Any) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="none")
