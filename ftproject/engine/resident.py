"""A base model held in memory that answers with or without adapters, one caller at a time."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ftproject.engine.adapter_switch import AdapterSwitch
from ftproject.engine.adapters import AdapterError, check_adapter_fits, read_adapter_info
from ftproject.engine.answering import ChatAnswer, ChatRequest, answer_chats
from ftproject.engine.backends.base import EngineError, FinishReason, Generation, RowError
from ftproject.engine.batch_memory import free_memory_bytes, tokens_that_fit
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.decoding import DecodedRow, DecodingRequest, decode_batch
from ftproject.engine.encoding import EncodedRow, RowEncoder, build_batch
from ftproject.engine.greedy import greedy_tokens, knows_this_transformers
from ftproject.engine.label_scores import cut_after_end, log_probabilities_of_answers
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import PixelRule, apply_pixel_rule, pixel_rule_of
from ftproject.engine.prompt_cache import PromptCache

ADAPTERS_IN_MEMORY = 4
UNKNOWN = "unknown"  # which adapter is active, after PEFT has loaded one by its own rules


class GenerationError(EngineError):
    """An answer that cannot be generated."""


class ImageView:
    """How images are seen under one pixel rule: the token counts and the cached pixels."""

    def __init__(self, processor: Any, rule: PixelRule) -> None:
        own = copy.copy(processor)
        own.image_processor = copy.deepcopy(processor.image_processor)
        apply_pixel_rule(own, rule.min_pixels, rule.max_pixels)
        self.rule = rule
        self.encoder = RowEncoder(own)
        self.pixels = PixelCache(own)


class ResidentModel:
    """Implements LoadedModel over a transformers model; base and adapters share one set of weights.

    Switching adapters changes shared modules, so one lock is held around load, switch and generate.
    """

    def __init__(self, model: Any, processor: Any, *, model_name: str, device: str, own_loop: bool = False) -> None:
        """`own_loop` decodes greedy batches by `greedy_tokens`; not for a model whose `generate` was replaced."""
        self._own_loop = own_loop and knows_this_transformers()
        self.model_name = model_name
        self.device = device
        self.processor = processor
        self._model = model
        self._peft: Any = None
        self._switch: AdapterSwitch | None = None
        self._active: str | None = UNKNOWN
        self._own_view = ImageView(processor, pixel_rule_of(processor))
        self._views: dict[PixelRule, ImageView] = {self._own_view.rule: self._own_view}
        # Reading an adapter's files for each row took as long as generating for it.
        self._rules: dict[tuple[Path, int], PixelRule | None] = {}
        self._prompts = PromptCache()
        self._adapters: OrderedDict[tuple[Path, int], str] = OrderedDict()
        self._counter = 0
        self._lock = threading.RLock()

    def encode(self, conversation: ResolvedConversation, *, adapter: Path | None = None) -> EncodedRow:
        """The prompt's tokens, without an answer; raises RowError."""
        view = self._view_of(adapter)
        return self._prompts.get(
            (view.rule, conversation),
            lambda: self._fitting(view.encoder.encode(conversation, with_response=False)),
        )

    def _fitting(self, row: EncodedRow) -> EncodedRow:
        limit = int(self._model.config.get_text_config().max_position_embeddings)
        if len(row) > limit:
            raise RowError("prompt_too_long", f"the prompt has {len(row)} tokens; the model reads {limit}")
        return row

    def preload(self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None) -> None:
        """Decodes and resizes the images of coming rows; needs no lock, errors are left to generate."""
        with suppress(EngineError):
            self._view_of(adapter).pixels.prepare([path for row in conversations for path in row.image_paths])

    def prompt_lengths(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None
    ) -> list[int]:
        """Tokens of each prompt, images included; 0 for one that cannot be encoded: `generate` says why."""

        def length(conversation: ResolvedConversation) -> int:
            try:
                return len(self.encode(conversation, adapter=adapter))
            except EngineError:
                return 0

        return [length(conversation) for conversation in conversations]

    def batch_tokens(self) -> int:
        """Padded tokens of prompts and answers that fit into memory at once, estimated."""
        return tokens_that_fit(
            self._model.config,
            free_bytes=free_memory_bytes(self.device),
            element_size=self._model.dtype.itemsize,
            on_cpu=self.device == "cpu",
        )

    def _view_of(self, adapter: Path | None) -> ImageView:
        """Images as the adapter saw them in training; the base sees them by the rule it was loaded with."""
        rule = None if adapter is None else self._rule_of(adapter)
        if rule is None:
            return self._own_view
        if rule not in self._views:
            self._views.setdefault(rule, ImageView(self.processor, rule))
        return self._views[rule]

    def _rule_of(self, adapter: Path) -> PixelRule | None:
        key = _adapter_key(adapter)
        if key not in self._rules:
            self._rules[key] = read_adapter_info(adapter).pixel_rule
        return self._rules[key]

    def generate(
        self,
        conversations: Sequence[ResolvedConversation],
        params: GenerationParams,
        *,
        adapter: Path | None,
        on_token: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        """One answer per conversation, in order; `adapter` null answers with the base.

        `on_token` gets the text as it comes and needs a single conversation; what it raises ends the generation.
        Raises RowError, AdapterError, GenerationError.
        """
        if not conversations:
            return []
        if on_token is not None and len(conversations) != 1:
            raise GenerationError("stream_one", "only one conversation can be streamed at a time")
        with self._lock, self._answering(adapter) as model:
            rows = [self.encode(conversation, adapter=adapter) for conversation in conversations]
            inputs = self._inputs(rows, adapter)
            started = time.perf_counter()
            answers = self._run(model, inputs, params, on_token)
            spent = (time.perf_counter() - started) * 1000 / len(rows)
        return [self._generation(row, ids, spent) for row, ids in zip(rows, answers, strict=True)]

    def answer_log_probabilities(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None
    ) -> list[float]:
        """Of each conversation, the natural log of the probability that the answer is its response and then ends.

        One forward pass of prompt and response, no generation. Raises RowError, AdapterError.
        """
        import torch

        if not conversations:
            return []
        with self._lock, self._answering(adapter) as model, torch.inference_mode():
            encode = self._view_of(adapter).encoder.encode
            rows = [self._fitting(encode(conversation, with_response=True)) for conversation in conversations]
            rows = [cut_after_end(row, self._end_ids()) for row in rows]
            return log_probabilities_of_answers(model, self._inputs(rows, adapter), rows)

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """One answer per chat, in order, those of one adapter in one batch; what is wrong with one is its `error`."""
        with self._lock:
            return answer_chats(requests, self._encode_chat, self._decode)

    def _encode_chat(self, request: ChatRequest) -> EncodedRow:
        return self._fitting(self._view_of(request.adapter).encoder.encode_chat(request.chat))

    def _decode(
        self, rows: Sequence[EncodedRow], requests: Sequence[DecodingRequest], adapter: Path | None
    ) -> list[DecodedRow]:
        import torch

        tokenizer = self.processor.tokenizer
        with self._answering(adapter) as model, torch.inference_mode():
            inputs = self._inputs(rows, adapter)
            return decode_batch(model.generate, inputs, requests, tokenizer=tokenizer, end_ids=self._end_ids())

    def _inputs(self, rows: Sequence[EncodedRow], adapter: Path | None) -> dict[str, Any]:
        """Left-padded model inputs on the model's device, pixels in its precision."""
        batch = build_batch(
            rows,
            self._view_of(adapter).pixels,
            image_token_id=self.processor.image_token_id,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            padding_side="left",
            with_labels=False,
        )
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return inputs

    def _run(
        self,
        model: Any,
        inputs: dict[str, Any],
        params: GenerationParams,
        on_token: Callable[[str], None] | None,
    ) -> list[list[int]]:
        import torch

        if params.greedy and on_token is None and self._own_loop:
            with torch.inference_mode():
                return greedy_tokens(
                    model,
                    self._model,
                    inputs,
                    max_new_tokens=params.max_new_tokens,
                    end_ids=self._end_ids(),
                )
        with torch.inference_mode(), torch.random.fork_rng(enabled=params.seed is not None):
            if params.seed is not None:
                torch.manual_seed(params.seed)
            output = model.generate(
                **inputs,
                generation_config=self._generation_config(params),
                streamer=None if on_token is None else _streamer(self.processor.tokenizer, on_token),
            )
        width = inputs["input_ids"].shape[1]
        answers: list[list[int]] = output[:, width:].tolist()
        return answers

    def _generation_config(self, params: GenerationParams) -> Any:
        """Every deciding field set: what is left out would come from the model's own generation_config.json."""
        from transformers import GenerationConfig

        sampling: dict[str, Any] = {"do_sample": False}
        if not params.greedy:
            sampling = {
                "do_sample": True,
                "temperature": params.temperature,
                "top_p": params.top_p,
                "min_p": params.min_p or None,
                "top_k": 0,
            }
        return GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            eos_token_id=sorted(self._end_ids()),
            pad_token_id=self.processor.tokenizer.pad_token_id,
            repetition_penalty=1.0,
            num_beams=1,
            **sampling,
        )

    def _end_ids(self) -> set[int]:
        own = self._model.generation_config.eos_token_id
        ids = set(own) if isinstance(own, list) else {own} - {None}
        return ids | {self.processor.tokenizer.eos_token_id}

    def _generation(self, row: EncodedRow, ids: list[int], time_ms: float) -> Generation:
        """Cuts the padding that follows the end token; completion_tokens counts the end token, as vLLM does."""
        ends = self._end_ids()
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        stopped = length > 0 and ids[length - 1] in ends
        reason: FinishReason = "stop" if stopped else "length"
        text = self.processor.tokenizer.decode(ids[:length], skip_special_tokens=True)
        return Generation(text, len(row), length, reason, time_ms)

    @contextmanager
    def _answering(self, adapter: Path | None) -> Iterator[Any]:
        """The model with exactly this adapter active; the lock must be held."""
        if adapter is None:
            self._activate(None)
            yield self._model if self._peft is None else self._peft
            return
        self._peft_with(adapter)
        yield self._peft

    def ensure_adapter(self, path: Path) -> None:
        """Loads the adapter beside the base unless it is loaded already; raises AdapterError."""
        with self._lock:
            self._peft_with(path)

    def _peft_with(self, path: Path) -> None:
        info = read_adapter_info(path)
        if info.base_model_name != self.model_name:
            message = f"{info.name} was trained on {info.base_model_name}, not on {self.model_name}"
            raise AdapterError("adapter_base_mismatch", message)
        key = _adapter_key(path)
        name = self._adapters.get(key) or self._load_adapter(path, key)
        self._adapters.move_to_end(key)
        self._activate(name)

    def _load_adapter(self, path: Path, key: tuple[Path, int]) -> str:
        from peft import PeftModel

        check_adapter_fits(self._model, path)
        self._counter += 1
        name = f"adapter{self._counter}"
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model, str(path), adapter_name=name).eval()
            else:
                self._peft.load_adapter(str(path), adapter_name=name)
            self._adapters[key] = name
            AdapterSwitch(self._model).activate(name)  # PEFT complains when the active one is deleted
            while len(self._adapters) > ADAPTERS_IN_MEMORY:
                _, oldest = self._adapters.popitem(last=False)
                self._peft.delete_adapter(oldest)
        finally:  # a load that fails half-way has put layers into the model that are active
            self._switch, self._active = AdapterSwitch(self._model), UNKNOWN
        return name

    def _activate(self, name: str | None) -> None:
        if self._switch is not None and name != self._active:
            self._switch.activate(name)
            self._active = name

    def memory_mb(self) -> int:
        """Memory in use in MiB: of the CUDA device, else of this process."""
        import psutil
        import torch

        if self.device != "cpu":
            return int(torch.cuda.memory_allocated()) // 2**20
        return int(psutil.Process().memory_info().rss) // 2**20


def _adapter_key(path: Path) -> tuple[Path, int]:
    """The time of writing is part of it: a deleted adapter's path may come back with other weights."""
    try:
        return path.resolve(), path.stat().st_mtime_ns
    except OSError:
        read_adapter_info(path)  # says what is wrong with it
        raise


def _streamer(tokenizer: Any, on_token: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class CallbackStreamer(TextStreamer):  # type: ignore[misc]
        """Hands finished pieces of text to a callback instead of printing them."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_token(text)

    return CallbackStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
