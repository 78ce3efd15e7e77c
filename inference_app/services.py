"""Answers prompts: with the base or an adapter, or with both side by side."""

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.conf import settings

from datasets_app.images import ImageRefusedError, resolve_image
from ftproject.core.departure import Departure
from ftproject.core.errors import InvalidInputError, Problem
from ftproject.engine.configs import ConfigError, GenerationParams, parse_generation_params
from inference_app.chat_format import ChatAnswer, openai_messages
from inference_app.model_server import model_server
from inference_app.remote_server import RemoteSession, remote_server, remote_spec
from inference_app.server_process import ServerSpec
from inference_app.session import ServedAdapter, Session
from inference_app.word_diff import DiffPart, diff_words
from training_app.configuration import default_config, refusal, resolve_config
from training_app.models import Adapter
from training_app.selectors import find_effective_adapter

AnsweringSession = Session | RemoteSession


@dataclass(frozen=True)
class PreparedPrompt:
    """A request that needs only the model any more."""

    messages: list[dict[str, Any]]
    params: GenerationParams
    spec: ServerSpec
    adapter: ServedAdapter | None


@dataclass(frozen=True)
class GeneratedAnswer:
    answer: ChatAnswer
    model_name: str
    adapter: str | None
    seed: int | None
    load_time_ms: float


@dataclass(frozen=True)
class AdapterAnswer:
    """An adapter's answer, and how its words differ from the base's (None: too long to compare)."""

    adapter: str
    answer: ChatAnswer
    diff: list[DiffPart] | None


@dataclass(frozen=True)
class ComparedAnswers:
    """The base's answer to one prompt and those of adapters on it, all drawn with the same seed."""

    base: ChatAnswer
    finetuned: list[AdapterAnswer]
    model_name: str
    seed: int | None
    load_time_ms: float


def generate_answer(
    *, wait_seconds: float = 0.0, departure: Departure | None = None, **request: Any
) -> GeneratedAnswer:
    """The answer to one prompt; `request` as `prepare_prompt` takes it. Given up when the client departs."""
    prompt = prepare_prompt(**request)
    params = with_seed(prompt.params)
    with open_session(prompt.spec, wait_seconds=wait_seconds, departure=departure) as session:
        answer = session.chat(prompt.messages, params, prompt.adapter)
        name = prompt.adapter.name if prompt.adapter else None
        return GeneratedAnswer(answer, prompt.spec.model_name, name, seed_of(params), session.load_ms)


def compare_answers(
    *,
    adapter_paths: Sequence[str | int],
    wait_seconds: float = 0.0,
    departure: Departure | None = None,
    **request: Any,
) -> ComparedAnswers:
    """The base's answer and each adapter's, one after the other from one set of weights."""
    first, *others = [find_served(reference) for reference in adapter_paths]
    for other in others:
        require_same_base(first, other)
    prompt = prepare_prompt(adapter_path=first.name, **request)
    params = with_seed(prompt.params)
    with open_session(prompt.spec, wait_seconds=wait_seconds, departure=departure) as session:
        served = [served_adapter(adapter) for adapter in (first, *others)]
        for adapter in served:
            session.prepare(adapter)
        base = session.chat(prompt.messages, params)
        answers = [(adapter.name, session.chat(prompt.messages, params, adapter)) for adapter in served]
        finetuned = [AdapterAnswer(name, answer, diff_words(base.text, answer.text)) for name, answer in answers]
        return ComparedAnswers(base, finetuned, prompt.spec.model_name, seed_of(params), session.load_ms)


def open_session(
    spec: ServerSpec, *, wait_seconds: float = 0.0, departure: Departure | None = None
) -> AbstractContextManager[AnsweringSession]:
    """A session on the server of QWEN3VL_INFERENCE_URL where one is set, else on our own model server."""
    answering = remote_server() or model_server
    return answering.session(spec, wait_seconds=wait_seconds, departure=departure)


def served_adapter(adapter: Adapter) -> ServedAdapter:
    return ServedAdapter(adapter.name, adapter.path, adapter.sha256)


def find_served(reference: str | int) -> Adapter:
    adapter = find_effective_adapter(reference=reference)
    assert adapter is not None  # noqa: S101 - a reference was given
    return adapter


def require_same_base(first: Adapter, other: Adapter) -> None:
    if first.base_model_name == other.base_model_name:
        return
    message = f"{first.name!r} belongs to {first.base_model_name!r}, {other.name!r} to {other.base_model_name!r}."
    problem = Problem(code="adapter_base_mismatch", message=message, field="adapter_paths")
    hint = "Compare adapters of one base model in one call."
    raise InvalidInputError(message, code=problem.code, hint=hint, errors=[problem])


def seed_of(params: GenerationParams) -> int | None:
    return None if params.greedy else params.seed


def with_seed(params: GenerationParams) -> GenerationParams:
    """Sampling with a seed: a difference between two answers must come from the models, not from the dice."""
    if params.greedy or params.seed is not None:
        return params
    return replace(params, seed=secrets.randbelow(2**31))


def prepare_prompt(
    *,
    prompt: str,
    image_urls: Sequence[str] | None = None,
    adapter_path: str | int | None = None,
    generation_params: Mapping[str, Any] | None = None,
    model_name: str | None = None,
) -> PreparedPrompt:
    """Everything that can be refused before the GPU is touched; images are fetched last, as the slowest part."""
    params = read_generation_params(generation_params)
    adapter = find_effective_adapter(reference=adapter_path)
    spec = choose_model(model_name, adapter)
    messages = openai_messages(prompt, resolve_images(image_urls or []))
    served = served_adapter(adapter) if adapter else None
    return PreparedPrompt(messages, params, spec, served)


def read_generation_params(given: Mapping[str, Any] | None) -> GenerationParams:
    try:
        return parse_generation_params(given, GenerationParams())
    except ConfigError as error:
        raise refusal(error) from error


def choose_model(model_name: str | None, adapter: Adapter | None) -> ServerSpec:
    """The base to load: the adapter's own, loaded as it was trained on, else the named or the default one."""
    if adapter is not None and model_name not in (None, adapter.base_model_name):
        message = f"The adapter {adapter.name!r} belongs to {adapter.base_model_name!r}."
        problem = Problem(code="adapter_base_mismatch", message=message, field="model_name")
        hint = "Leave model_name out: the adapter brings its base."
        raise InvalidInputError(message, code=problem.code, hint=hint, errors=[problem])
    if remote := remote_server():
        return remote_spec(remote, adapter.base_model_name if adapter else model_name)
    config = default_config()
    wanted = replace(config.model, model_name=adapter.base_model_name if adapter else model_name)
    if adapter is not None and adapter.run is not None:
        trained = adapter.run.config.get("model_config_data", {})
        wanted = replace(wanted, load_in_4bit=trained.get("load_in_4bit"))
    effective = resolve_model_config(replace(config, model=wanted))
    return ServerSpec(
        model_name=effective.model_name,
        model_path=effective.model_path,
        backend=effective.backend,
        load_in_4bit=effective.config.model.load_in_4bit,
    )


def resolve_model_config(config: Any) -> Any:
    """`resolve_config` with its refusals about this API's own field."""
    try:
        return resolve_config(config)[0]
    except InvalidInputError as error:
        for index, problem in enumerate(error.errors):
            error.errors[index] = replace(problem, field="model_name")
        raise


def resolve_images(image_urls: Sequence[str]) -> list[Path]:
    """The images as files of the cache, fetched at once; the first one that cannot be used refuses the request."""
    if len(image_urls) < 2:  # starting a thread takes longer than finding one image in the cache
        return [resolve_numbered(index, url) for index, url in enumerate(image_urls)]
    with ThreadPoolExecutor(max_workers=settings.IMAGE_CONCURRENCY, thread_name_prefix="images") as fetchers:
        return list(fetchers.map(resolve_numbered, range(len(image_urls)), image_urls))


def resolve_numbered(index: int, url: str) -> Path:
    try:
        return resolve_image(url)
    except ImageRefusedError as error:
        problem = Problem(code=error.code, message=error.detail, field=f"image_urls[{index}]")
        detail = f"image_urls[{index}]: {error.detail}"
        raise InvalidInputError(detail, code=error.code, hint=error.hint, errors=[problem]) from error
