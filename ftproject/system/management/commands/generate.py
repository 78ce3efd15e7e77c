"""`manage.py generate`: one prompt, answered by the base, an adapter, or several side by side."""

import base64
import json
import mimetypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ftproject.core.errors import ProductError
from ftproject.system.client import ApiClient, ApiError, silence_told
from ftproject.system.housekeeping import run_duty
from ftproject.system.management.commands.demo import running_url

STYLES = {"insert": "bold green", "replace": "bold yellow"}
LONGEST_ANSWER_SECONDS = 1800
TEND_SECONDS = 0.5


class Command(BaseCommand):
    help = "Answers a prompt with images, by the base, an adapter, or several side by side."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--prompt", required=True)
        parser.add_argument(
            "--image", action="append", default=[], help="a file, an http(s) URL or a data URI; repeatable"
        )
        parser.add_argument(
            "--adapter", action="append", default=[], help="path, name or id; repeatable with --compare"
        )
        parser.add_argument("--compare", action="store_true", help="the base's answer beside that of every --adapter")
        parser.add_argument("--model-name", help="base model, when no adapter is named")
        parser.add_argument("--max-new-tokens", type=int)
        parser.add_argument("--temperature", type=float, help="0 takes the most probable token each time")
        parser.add_argument("--top-p", type=float)
        parser.add_argument("--seed", type=int)
        parser.add_argument("--wait-seconds", type=int, default=0, help="how long to wait while a run has the GPU")
        parser.add_argument("--output", choices=["text", "json"], default="text")
        parser.add_argument("--url", help="a server to ask; default: the one that serves this data folder, if any")

    def handle(self, *args: Any, **options: Any) -> None:
        body = request_body(options)
        try:
            answer = ask(body, compare=options["compare"], url=options["url"] or running_url())
        except ApiError as exc:
            raise CommandError(str(exc)) from None
        except ProductError as exc:
            raise CommandError(f"{exc.code}: {exc.detail} {exc.hint}".strip()) from None
        if options["output"] == "json":
            self.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2))
        else:
            show(answer, Console(file=cast(IO[str], self.stdout), soft_wrap=True))


def request_body(options: dict[str, Any]) -> dict[str, Any]:
    """The body of POST /api/inference/generate or compare."""
    adapters, compare = options["adapter"], options["compare"]
    if compare and not adapters:
        raise CommandError("--compare needs at least one --adapter.")
    if len(adapters) > 1 and not compare:
        raise CommandError("Several --adapter need --compare.")
    params = {name: options[name] for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    given = {name: value for name, value in params.items() if value is not None}
    body: dict[str, Any] = {"prompt": options["prompt"], "image_urls": [image_url(image) for image in options["image"]]}
    if compare:
        body["adapter_paths"] = adapters
    elif adapters:
        body["adapter_path"] = adapters[0]
    if options["model_name"]:
        body["model_name"] = options["model_name"]
    return body | {"generation_params": given, "wait_seconds": options["wait_seconds"]}


def image_url(image: str) -> str:
    """A URL as it is; a file of this machine as a data URI, since the server opens no paths."""
    if "://" in image or image.startswith("data:"):
        return image
    try:
        content = base64.b64encode(Path(image).read_bytes()).decode()
    except OSError as exc:
        raise CommandError(f"--image {image}: {exc.strerror or exc}.") from None
    return f"data:{mimetypes.guess_type(image)[0] or 'image/png'};base64,{content}"


def ask(body: dict[str, Any], *, compare: bool, url: str | None) -> dict[str, Any]:
    """Asks the server, which has the model loaded; without one the same services answer in this process."""
    action = "compare" if compare else "generate"
    if url:
        with silence_told():
            client = ApiClient(url)
            client.http.timeout = LONGEST_ANSWER_SECONDS
            return client.post(f"/api/inference/{action}", body)
    return answer_here(body, compare=compare)


def answer_here(body: dict[str, Any], *, compare: bool) -> dict[str, Any]:
    from inference_app import serializers, services
    from inference_app.model_server import model_server

    form = (serializers.CompareSerializer if compare else serializers.GenerateSerializer)(data=body)
    if not form.is_valid():
        raise CommandError("; ".join(f"{name}: {messages[0]}" for name, messages in form.errors.items()))
    try:
        with lease_kept(model_server.tend):
            if compare:
                return serializers.describe_comparison(services.compare_answers(**form.validated_data))
            return serializers.describe_answer(services.generate_answer(**form.validated_data))
    finally:
        model_server.close()


@contextmanager
def lease_kept(tend: Callable[[], None]) -> Iterator[None]:
    """Does what the web process's housekeeper does: without its beats a run would take the GPU after 20 s."""
    done = threading.Event()

    def keep() -> None:
        while not done.wait(TEND_SECONDS):
            run_duty("model server", tend)
        connection.close()

    keeper = threading.Thread(target=keep, name="lease-keeper", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()


def show(answer: dict[str, Any], console: Console) -> None:
    if "answers" not in answer:
        console.print(answer["output"], markup=False, highlight=False)
        return
    console.print(panel("base", answer["base_output"], answer["base_time_ms"]))
    for item in answer["answers"]:
        console.print(panel(item["adapter"], marked(item), item["generation_time_ms"]))


def panel(title: str, text: str | Text, milliseconds: float) -> Panel:
    body = text if isinstance(text, Text) else Text(text)
    return Panel(body, title=Text(title), subtitle=f"{milliseconds:.0f} ms", title_align="left", subtitle_align="right")


def marked(item: dict[str, Any]) -> str | Text:
    """The adapter's answer with the words marked that the base did not say."""
    if item["diff"] is None:
        return str(item["output"])
    return Text.assemble(*((part["finetuned"], STYLES.get(part["op"], "")) for part in item["diff"]))
