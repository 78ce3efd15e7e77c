"""What a requested configuration becomes on the device at hand, decided without importing torch."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ftproject.engine.fields import ConfigError, ConfigProblem
from ftproject.engine.hyperparameters import SftSettings, TrainingConfig, TrainingOptions

TINY_MODEL_NAME = "tiny-qwen3-vl"
TINY_MODEL_PATH = Path(__file__).parent / "assets" / TINY_MODEL_NAME
GPU_MODEL_NAME = "unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit"
ALLOWED_HUB_MODELS = ("unsloth/Qwen3-VL-*", "Qwen/Qwen3-VL-*")
NEEDS_GPU_HINT = f"omit model_name or use {TINY_MODEL_NAME}"
MODEL_FIELD = "model_config_data.model_name"
FEWEST_STEPS_APART, MOST_STEPS_APART = 10, 250
MOST_WORKERS = 4
# Workers hand their batches over in shared memory; a container's 64 MB would end them with a bus error.
SHARED_MEMORY = Path("/dev/shm")  # nosec B108 # noqa: S108 - only its free space is looked at
SHARED_MEMORY_WANTED = 2**30


@dataclass(frozen=True)
class DeviceFacts:
    """What this machine can compute with; `memory_total_mb` is the accelerator's, in MiB."""

    cuda: bool
    name: str | None
    memory_total_mb: int | None
    bf16: bool


@dataclass(frozen=True)
class EffectiveConfig:
    """A configuration as it will really run: no null left that decides anything, and what was changed."""

    config: TrainingConfig
    model_path: str
    backend: str
    warnings: list[str]

    @property
    def model_name(self) -> str:
        """The base model's name, never a path."""
        return self.config.model.model_name or TINY_MODEL_NAME


def resolve_training_config(
    config: TrainingConfig,
    device: DeviceFacts,
    *,
    default_model: str | None = None,
    models_dir: Path,
    backend: str = "auto",
) -> EffectiveConfig:
    """The configuration that this device runs; raises ConfigError (model_needs_gpu, model_not_allowed)."""
    name, path = resolve_model(config.model.model_name, device, default_model=default_model, models_dir=models_dir)
    length = config.max_seq_length
    model = replace(
        config.model,
        model_name=name,
        max_seq_length=length,
        load_in_4bit=four_bit(config.model.load_in_4bit, name, path, cuda=device.cuda),
    )
    warnings = [*_model_warnings(config, model.load_in_4bit, device), *_unused_settings(config)]
    sft, changes = _settings_on_device(config.sft, name, device)
    chosen = choose_backend(backend, device, name)
    if chosen == "unsloth" and device.cuda and not (sft.bf16 or sft.fp16):
        sft, changes = _in_mixed_precision(sft, changes, device)
    effective = replace(config, model=model, sft=replace(sft, max_seq_length=length))
    return EffectiveConfig(effective, path, chosen, [*warnings, *changes])


def resolve_model(
    name: str | None, device: DeviceFacts, *, default_model: str | None = None, models_dir: Path
) -> tuple[str, str]:
    """The base model's name and where to load it from: a folder, or a hub id.

    `name` null takes `default_model`, else the default of the device. Raises ConfigError with code
    `model_not_allowed` for anything but a Qwen3-VL of the allow list or a folder directly under `models_dir`,
    and `model_needs_gpu` for a hub model without CUDA.
    """
    wanted = name or default_model or (GPU_MODEL_NAME if device.cuda else TINY_MODEL_NAME)
    if wanted == TINY_MODEL_NAME:
        return TINY_MODEL_NAME, str(TINY_MODEL_PATH)
    folder = _local_folder(wanted, models_dir)
    if folder is not None:
        return folder.name, str(folder)
    if not any(fnmatchcase(wanted, pattern) for pattern in ALLOWED_HUB_MODELS) or wanted.count("/") != 1:
        allowed = f"{TINY_MODEL_NAME}, {', '.join(ALLOWED_HUB_MODELS)}, or a folder in the models directory"
        raise _model_error("model_not_allowed", f"{wanted!r} is not an allowed model", f"use {allowed}")
    if not device.cuda:
        message = f"{wanted} needs a CUDA GPU, and this machine has none"
        raise _model_error("model_needs_gpu", message, NEEDS_GPU_HINT)
    return wanted, wanted


def _model_error(code: str, message: str, hint: str) -> ConfigError:
    return ConfigError([ConfigProblem(MODEL_FIELD, code, message)], hint)


def _local_folder(name: str, models_dir: Path) -> Path | None:
    """The folder directly under `models_dir` that `name` (its name or its path) means; None for a half-written one."""
    if "\0" in name or len(name) > 1000:
        return None
    root = models_dir.resolve()
    # Joining keeps an absolute name as it is; what counts is where it ends up, links followed.
    folder = (root / name).resolve()
    hidden = folder.name.startswith(".")  # a merge under way writes into one
    # os.path: Path.is_dir raises for a name that is longer than any file's.
    return folder if folder.parent == root and os.path.isdir(folder) and not hidden else None


def four_bit(wanted: bool | None, name: str, path: str, *, cuda: bool) -> bool:
    """Whether a base is quantised to 4 bit: as stored, as asked, else hub models on CUDA; training, answering alike."""
    if stored_in_four_bit(name, path):
        return True
    if wanted is not None:
        return wanted
    # Unsloth's own default for hub models; a local folder is loaded as it stands.
    return cuda and name == path


def stored_in_four_bit(name: str, path: str) -> bool:
    """Whether the base's own weights have 4 bits, so that no setting loads it otherwise; a hub model says so itself."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return name.endswith("bnb-4bit")
    try:
        return json.loads(file.read_text(encoding="utf-8"))["quantization_config"].get("load_in_4bit") is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # loading it says what is wrong with it


def _model_warnings(config: TrainingConfig, load_in_4bit: bool | None, device: DeviceFacts) -> list[str]:
    warnings = []
    if load_in_4bit and not device.cuda:
        warnings.append("load_in_4bit without a CUDA device is slower than full precision and costs accuracy")
    if load_in_4bit and config.model.load_in_4bit is False:
        warnings.append("load_in_4bit false has no effect: the weights of this model are stored in 4 bit")
    if not config.sft.use_epochs:  # else the steps are known when the rows are
        warnings += warm_up_warnings(config.sft, config.sft.max_steps)
    return warnings


def warm_up_warnings(sft: SftSettings, steps: int) -> list[str]:
    """A sentence where a run of so many steps ends before its learning rate has risen."""
    if sft.lr_scheduler_type == "constant" or sft.warmup_steps < steps:
        return []
    name = "the steps of this run," if sft.use_epochs else "max_steps"
    return [f"warmup_steps {sft.warmup_steps} is not below {name} {steps}: the learning rate never reaches its peak"]


def _unused_settings(config: TrainingConfig) -> Iterator[str]:
    """A sentence for each setting that was given, and that another one leaves without effect.

    Said and not refused: forms and stored configurations carry every field.
    """
    sft, options, usual = config.sft, config.options, SftSettings()
    if sft.use_epochs and sft.max_steps != usual.max_steps:
        decides = f"use_epochs is true, so num_train_epochs {sft.num_train_epochs:g} decides"
        yield f"max_steps {sft.max_steps} has no effect: {decides}"
    if not sft.use_epochs and sft.num_train_epochs != usual.num_train_epochs:
        decides = f"use_epochs is false, so max_steps {sft.max_steps} decides"
        yield f"num_train_epochs {sft.num_train_epochs:g} has no effect: {decides}"
    if sft.lr_scheduler_type == "constant" and sft.warmup_steps:
        yield f"warmup_steps {sft.warmup_steps} has no effect with lr_scheduler_type constant: use constant_with_warmup"
    if options.holdout_seed != TrainingOptions().holdout_seed and not options.holdout_fraction:
        yield f"holdout_seed {options.holdout_seed} has no effect: holdout_fraction is 0"


def _settings_on_device(sft: SftSettings, name: str, device: DeviceFacts) -> tuple[SftSettings, list[str]]:
    """The precision, optimizer and checkpointing that the device runs, and a warning for each change."""
    warnings = []
    changed = sft
    if sft.bf16 and not device.bf16:
        changed = replace(changed, bf16=False, fp16=device.cuda)
        instead = "float16 mixed precision" if device.cuda else "float32"
        warnings.append(f"bf16 is not available on {_device_words(device)}: training in {instead}")
    if sft.fp16 and not device.cuda:
        changed = replace(changed, fp16=False)
        warnings.append("fp16 needs a CUDA device: training in float32")
    if ("8bit" in sft.optim or "paged" in sft.optim) and not device.cuda:
        changed = replace(changed, optim="adamw_torch")
        warnings.append(f"optim {sft.optim} needs a CUDA device: using adamw_torch")
    if sft.gradient_checkpointing is None:
        changed = replace(changed, gradient_checkpointing=device.cuda and name != TINY_MODEL_NAME)
    if sft.dataloader_num_workers is None:
        changed = replace(changed, dataloader_num_workers=loader_workers(device))
    if sft.save_steps is None and not sft.use_epochs:
        changed = replace(changed, save_steps=automatic_save_steps(sft.max_steps))
    return changed, warnings


def _in_mixed_precision(sft: SftSettings, changes: list[str], device: DeviceFacts) -> tuple[SftSettings, list[str]]:
    """What Unsloth's trainer makes of both switches off: it turns one of them on by itself (2026.10.7)."""
    words = "bfloat16" if device.bf16 else "float16"
    warning = f"unsloth always trains in mixed precision: {words} is used although bf16 and fp16 are off"
    return replace(sft, bf16=device.bf16, fp16=not device.bf16), [*changes, warning]


def automatic_save_steps(total_steps: int) -> int:
    """Steps between two checkpoints of a run: a tenth of it, at least 10 and at most 250.

    What a checkpoint costs stands in docs/benchmarks.md. With epochs the steps are known when the rows are:
    training decides then.
    """
    return min(max(math.ceil(total_steps / 10), FEWEST_STEPS_APART), MOST_STEPS_APART)


def loader_workers(device: DeviceFacts) -> int:
    """Processes that prepare batches: none on a CPU, which they would share with the step."""
    if not device.cuda or _free_bytes(SHARED_MEMORY) < SHARED_MEMORY_WANTED:
        return 0
    return max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _device_words(device: DeviceFacts) -> str:
    return device.name or "a CUDA device" if device.cuda else "a machine without a CUDA device"


def choose_backend(wanted: str, device: DeviceFacts, model_name: str) -> str:
    """The backend's name: `auto` takes unsloth on CUDA where it is installed, else transformers.

    The tiny model always runs on transformers: unquantised, and too small for Unsloth's kernels to matter.
    """
    if wanted != "auto":
        return wanted
    if not device.cuda or model_name == TINY_MODEL_NAME:
        return "transformers"
    return "unsloth" if importlib.util.find_spec("unsloth") else "transformers"
