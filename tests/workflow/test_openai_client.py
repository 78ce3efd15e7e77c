"""The official openai package, unchanged, against a served instance: whole answers, streams, pictures, refusals."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.workflow.conftest import digit_rows
from tests.workflow.served import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BASE = "tiny-qwen3-vl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("openai") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="not needed", max_retries=0) as client:
        yield client


def picture() -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": digit_rows(1)[0]["image"]}}


def test_the_models_are_listed(client: Any) -> None:
    assert BASE in [model.id for model in client.models.list()]
    assert client.models.retrieve(BASE).owned_by


def test_a_picture_is_described(client: Any) -> None:
    content = [{"type": "text", "text": "Describe the image."}, picture()]
    answer = client.chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=16
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_whole_answer_in_pieces(client: Any) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [picture(), {"type": "text", "text": "Describe the image."}]},
        {"role": "assistant", "content": "a red circle"},
        {"role": "user", "content": [{"type": "text", "text": "Describe the image."}, picture()]},
    ]
    whole = client.chat.completions.create(model=BASE, messages=messages, temperature=0, max_tokens=16)
    stream = client.chat.completions.create(
        model=BASE, messages=messages, temperature=0, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-1].usage == whole.usage


def test_a_stream_that_is_left_early_leaves_the_server_free(client: Any) -> None:
    messages = [{"role": "user", "content": "Describe the image."}]
    with client.chat.completions.create(
        model=BASE, messages=messages, temperature=100, max_tokens=4000, stream=True
    ) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model=BASE, messages=messages, temperature=0, max_tokens=4, timeout=20)
    assert answer.usage is not None


def test_a_seed_draws_the_same_answer_again(client: Any) -> None:
    drawn = {
        client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "Describe the image."}],
            temperature=1.5,
            seed=7,
            max_tokens=16,
        )
        .choices[0]
        .message.content
        for _ in range(3)
    }
    assert len(drawn) == 1


def test_refusals_are_the_packages_own_errors(client: Any) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="nobody") as missing:
        client.chat.completions.create(model="nobody", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=BASE, messages=messages, n=2)
    assert (refused.value.param, refused.value.code) == ("n", "unsupported_parameter")
