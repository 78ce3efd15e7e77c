"""The backend on Unsloth's FastVisionModel: CUDA only, 4-bit or 16-bit bases, the adapter folder of the plain one."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import RowError, TrainingCallbacks, TrainingError, TrainingJob, TrainingResult
from ftproject.engine.batches import ROWS_KEY, Collate
from ftproject.engine.configs import EffectiveConfig, LoraSettings, four_bit
from ftproject.engine.conversations import Conversation, ResolvedConversation, messages_of
from ftproject.engine.encoding import ASSISTANT_TURN, IGNORED, EncodedRow
from ftproject.engine.images import ImageError, open_image
from ftproject.engine.models import lora_target_regex, model_facts, torch_device, use_one_gpu
from ftproject.engine.processors import load_processor
from ftproject.engine.resident import ResidentModel
from ftproject.engine.training import TrainableModel, run_training

USER_TURN = "<|im_start|>user\n"  # with ASSISTANT_TURN it bounds what Unsloth's collator counts
DEFAULT_SEQUENCE_LENGTH = 8192  # for generation, where no run gives one


class UnslothBackend:
    """Loads with FastVisionModel, trains with Unsloth's collator under the same trainer."""

    name = "unsloth"

    def train(self, job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        """Runs the job; raises EngineError with a reason a user can act on."""
        with _scratch_directory(job.work_dir):
            _import_unsloth()
            return run_training(job, callbacks, build_trainable)

    def load(
        self,
        model_name: str,
        model_path: str,
        *,
        load_in_4bit: bool | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_seq_length: int | None = None,
    ) -> ResidentModel:
        """Loads a base model for generation."""
        fast = _import_unsloth()
        length = max_seq_length or DEFAULT_SEQUENCE_LENGTH
        model = _load(model_path, length, load_in_4bit=four_bit(load_in_4bit, model_name, model_path, cuda=True))
        fast.for_inference(model)
        processor = load_processor(model_path, min_pixels=min_pixels, max_pixels=max_pixels)
        return ResidentModel(model, processor, model_name=model_name, device=torch_device())


def _import_unsloth() -> Any:
    """FastVisionModel; imported before transformers, TRL and PEFT, which the import of unsloth patches."""
    use_one_gpu()  # importing it already asks CUDA for its devices
    from unsloth import FastVisionModel

    return FastVisionModel


def build_trainable(effective: EffectiveConfig) -> TrainableModel:
    """The base with an untrained adapter, and Unsloth's collator over the rows; unsloth must be imported before."""
    fast = _import_unsloth()
    config = effective.config
    checkpointing = bool(config.sft.gradient_checkpointing)
    model = _load(
        effective.model_path,
        config.max_seq_length,
        load_in_4bit=bool(config.model.load_in_4bit),
        checkpointing=checkpointing,
        half=config.sft.fp16,
    )
    model = _add_adapter(model, config.lora, config.sft.seed, checkpointing=checkpointing)
    fast.for_training(model)
    # Not Unsloth's own: its tokenizer may pad with another token, and the adapter is saved with this one.
    processor = load_processor(
        effective.model_path, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
    )

    def collator(rows: Sequence[ResolvedConversation], encoded: Sequence[EncodedRow]) -> Collate:
        return UnslothRowCollator(model, processor, rows, encoded)

    return TrainableModel(model, processor, torch_device(), collator, _answering)


def _load(path: str, length: int, *, load_in_4bit: bool, checkpointing: bool = False, half: bool = False) -> Any:
    """The base; in float16 when asked, else in what Unsloth chooses: bfloat16 where the device has it."""
    import torch

    model_facts(path)
    model, _ = _import_unsloth().from_pretrained(
        path,
        max_seq_length=length,
        # Its trainer refuses float16 over a bfloat16 base.
        dtype=torch.float16 if half else None,
        load_in_4bit=load_in_4bit,
        load_in_16bit=not load_in_4bit,
        use_gradient_checkpointing=_checkpointing(checkpointing),
        # Else it loads another repository for many names: Unsloth's 4-bit one for Qwen's, and the other way round.
        use_exact_model_name=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model


def _checkpointing(wanted: bool) -> str | bool:
    return "unsloth" if wanted else False


def _add_adapter(model: Any, lora: LoraSettings, seed: int, *, checkpointing: bool) -> Any:
    adapted = _import_unsloth().get_peft_model(
        model,
        # What get_peft_regex chooses for the four flags (compared in tests/engine/conformance), in the words that the
        # other backend writes into adapter_config.json; experts get no adapter there either.
        target_modules=lora_target_regex(lora),
        target_parameters=[],
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias="none",
        random_state=seed,
        use_rslora=False,
        loftq_config=None,
        # Its own default would turn checkpointing on again, whatever the base was loaded with.
        use_gradient_checkpointing=_checkpointing(checkpointing),
    )
    config = adapted.peft_config["default"]
    config.auto_mapping = None  # names a module to import; the other backend has none
    config.target_parameters = None
    config.loftq_config = {}
    return adapted


class UnslothRowCollator:
    """Feeds Unsloth's vision collator with the rows at the given positions, loss on the answers only.

    Its tokens must be those of our own encoder, which have been counted, previewed and checked against
    max_seq_length; the labels are our encoder's.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        rows: Sequence[ResolvedConversation],
        encoded: Sequence[EncodedRow],
    ) -> None:
        from unsloth.trainer import UnslothVisionDataCollator

        own = copy.deepcopy(processor)  # it changes the processor that it is given
        own.tokenizer.padding_side = "right"
        self._rows = rows
        self._encoded = encoded
        self._collate = UnslothVisionDataCollator(
            model,
            own,
            # Nothing is cut: longer rows were taken out before. None would mean the model's own limit.
            max_seq_length=max((len(row) for row in encoded), default=0) + 1,
            # Else images are shrunk to 512 pixels of width, or to the base's own size, before the pixel rule.
            resize="max",
            train_on_responses_only=True,
            instruction_part=USER_TURN,
            response_part=ASSISTANT_TURN,
        )

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        places = [feature["row"] for feature in features]
        examples = [
            {
                "messages": _messages(self._rows[place].conversation),
                "images": _open_images(self._rows[place]),
            }
            for place in places
        ]
        batch: dict[str, Any] = dict(self._collate(examples))
        rows = [self._encoded[place] for place in places]
        batch["labels"] = _labels(batch, rows)
        return batch | {ROWS_KEY: [row.index for row in rows]}


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The row's messages with bare image places: Unsloth would fetch an image named inside, and resize it first."""
    messages = messages_of(conversation, with_response=True)
    for message in messages:
        for part in message["content"]:
            part.pop("image", None)
    return messages


def _labels(batch: dict[str, Any], rows: Sequence[EncodedRow]) -> Any:
    """The encoder's labels in the shape of the batch; raises TrainingError when the tokens are not the encoder's."""
    import torch

    labels = torch.full_like(batch["input_ids"], IGNORED)
    for place, row in enumerate(rows):
        ids = batch["input_ids"][place, : len(row)]
        if int(batch["attention_mask"][place].sum()) != len(row) or ids.tolist() != row.input_ids:
            message = f"Unsloth's collator reads row {row.index} otherwise than the token preview shows it"
            raise TrainingError("encoding_mismatch", message)
        labels[place, : len(row)] = torch.tensor(row.labels)
    return labels


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """The model in Unsloth's mode for generation, and back in its mode for training afterwards."""
    import torch

    fast = _import_unsloth()
    fast.for_inference(model)
    try:
        with torch.no_grad():
            yield
    finally:
        fast.for_training(model)


def _open_images(row: ResolvedConversation) -> list[Any]:
    try:
        return [open_image(path) for path in row.image_paths]
    except ImageError as error:
        raise RowError(error.code, f"row {row.conversation.index}: {error.message}") from error


@contextmanager
def _scratch_directory(folder: Path) -> Iterator[None]:
    """Works in `folder`, because Unsloth writes unsloth_compiled_cache into the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
