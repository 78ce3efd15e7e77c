"""Evaluation's speed: base and adapter on the common work W, and 500 mixed rows against one-by-one generate."""

import csv
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.core.management import call_command

from benchmarks.instance import print_table

ROUNDS = int(os.environ.get("QWEN3VL_BENCH_ROUNDS") or 3)
STEPS = int(os.environ.get("QWEN3VL_BENCH_STEPS") or 300)
TRAINED, HELD_OUT, MIXED = 800, 200, 500
SHORT = {"max_new_tokens": 8, "do_sample": False}
MIXED_TOKENS = 64
# Words before a question, drawn for each row. A word is about two tokens of the tiny model.
WORDS = {"0 to 20 words before the question": (0, 0, 0, 5, 20), "0 to 60 words": (0, 0, 5, 20, 60)}
FILLER = ("please", "look", "at", "the", "picture", "and", "say", "what", "you", "see")


@dataclass
class Spent:
    """cpu seconds of a run, of its answering (first row to last, stored) and of the model's `generate`; its loads."""

    whole: float = 0.0
    answering: float = 0.0
    generating: float = 0.0
    loads: int = 0
    samples: list[str] = field(default_factory=list)


def main() -> None:
    call_command("migrate", verbosity=0)
    print_table("Base and adapter over the 200 held-out rows of W, one thread", work_rows())
    for name, words in WORDS.items():
        title = f"{MIXED} mixed rows, {name}, one thread, {ROUNDS} rounds in turns"
        print_table(title, mixed_rows(name, words))


def work_rows() -> list[tuple[str, str, str]]:
    """A training and two evaluations through the product in this process: each with its own load, then in a row."""
    from evaluation_app.loading import let_go

    folder = Path(settings.DATA_DIR)
    images = list(digits())
    train_set = import_rows(folder / "train.csv", images[:TRAINED])
    adapter = train(train_set)
    import_rows(folder / "heldout.csv", images[TRAINED:])
    evaluate(sample_limit=1)  # imports
    both, generating, alone, loads = [], [], [], 0
    for _ in range(ROUNDS):
        apart = []
        for model in (None, adapter):
            let_go()
            apart.append(evaluate(adapter_path=model))
        let_go()
        evaluate(sample_limit=1)  # loads, and knows one image of the 200
        base, tuned = evaluate(), evaluate(adapter_path=adapter)
        alone.append(sum(run.answering for run in apart))
        both.append(base.whole + tuned.whole)
        generating.append(base.generating + tuned.generating)
        loads += base.loads + tuned.loads
    right = sum(a == b["answer"] for a, b in zip(tuned.samples, images[TRAINED:], strict=True)) / HELD_OUT
    return [
        (
            "both runs whole after loading: rows, images, answers, samples, figures",
            spread(both, "cpu s"),
            "2.2, aim 1.2",
        ),
        ("of that the model: tokens, pixels, generation", spread(generating, "cpu s"), ""),
        ("answering of the two runs, each with a load of its own", spread(alone, "cpu s"), ""),
        ("both in a row / answering of two on their own", spread(ratios(both, alone), "x"), "1.2"),
        ("both in a row / the model's part of them", spread(ratios(both, generating), "x"), ""),
        ("loads in the two runs in a row", str(loads), "0"),
        ("fine-tuned exact match on 200 rows", f"{right:.3f}", ""),
    ]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def spread(values: Sequence[float], unit: str) -> str:
    return " / ".join(f"{value:.2f}" for value in values) + f" {unit}"


def digits() -> Iterator[dict[str, str]]:
    """W: 1,000 digits of a fixed permutation, 64 x 64; the last 200 are held out."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from ftproject.engine.tiny.demo_data import DIGITS_PROMPT, png_data_uri

    data = load_digits()
    for index in np.random.RandomState(0).permutation(len(data.images))[: TRAINED + HELD_OUT]:
        pixels = np.clip(data.images[index] * 16, 0, 255).astype("uint8")
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")
        yield {"prompt": DIGITS_PROMPT, "answer": str(data.target[index]), "image": png_data_uri(image)}


def import_rows(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = ("image",)) -> Any:
    from datasets_app.services import dataset_import, mapping_set

    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "answer", *columns])
        writer.writeheader()
        writer.writerows(rows)
    dataset = dataset_import(path=path)
    mapping_set(
        dataset=dataset,
        prompt_column="prompt",
        response_column="answer",
        image_url_columns=list(columns),
        mandatory_columns=[],
    )
    return dataset


def train(dataset: Any) -> str:
    from ftproject.core.jobs import claim_job
    from training_app.models import Adapter
    from training_app.runner import execute_training
    from training_app.services import start_training

    sft = {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 4e-3,
        "max_steps": STEPS,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "bf16": False,
        "seed": 0,
    }
    body = {"dataset_id": dataset.pk, "sft_config": sft, "lora_config": {"r": 16, "lora_alpha": 32}}
    run = start_training(body=body).run
    assert claim_job(run)
    execute_training(run, lambda: False)
    return Adapter.objects.get(run=run).name


@contextmanager
def counted(spent: Spent) -> Iterator[None]:
    """Adds up the cpu time inside the model and of the answering, and counts loads."""
    from evaluation_app.runner import RunningEvaluation
    from ftproject.engine.backends.transformers import TransformersBackend
    from ftproject.engine.resident import ResidentModel

    def timed(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                setattr(spent, name, getattr(spent, name) + time.process_time() - began)

        return call

    def counting(*arguments: Any, **options: Any) -> Any:
        spent.loads += 1
        return load(*arguments, **options)

    load = TransformersBackend.load
    with (
        patch.object(ResidentModel, "generate", timed("generating", ResidentModel.generate)),
        patch.object(RunningEvaluation, "answer", timed("answering", RunningEvaluation.answer)),
        patch.object(TransformersBackend, "load", counting),
    ):
        yield


def evaluate(**choice: Any) -> Spent:
    """One run as its run process does it; its cpu time holds everything after the claim."""
    from evaluation_app.plans import EvaluationRequest
    from evaluation_app.runner import execute_evaluation
    from evaluation_app.services import start_evaluation
    from ftproject.core.jobs import claim_job

    request = EvaluationRequest(generation_params=SHORT, reuse_base_predictions=False, **choice)
    run, _ = start_evaluation(request=request)
    assert claim_job(run)
    spent = Spent()
    with counted(spent):
        began = time.process_time()
        execute_evaluation(run, lambda: False)
        spent.whole = time.process_time() - began
    run.refresh_from_db()
    assert run.status == "completed", run.error
    spent.samples = list(run.samples.order_by("index").values_list("prediction", flat=True))
    return spent


def mixed_rows(name: str, words: Sequence[int]) -> list[tuple[str, str, str]]:
    from ftproject.engine.configs import TINY_MODEL_PATH

    rows = draw_mixed(Path(settings.DATA_DIR) / f"mixed-{name[:7].strip()}", words)
    sides: dict[str, Callable[[Any], tuple[float, list[str]]]] = {
        "one by one": lambda _: one_by_one(rows, str(TINY_MODEL_PATH)),
        "ours": lambda _: in_batches(rows, str(TINY_MODEL_PATH), 128),
        "ours, batches of 1": lambda _: in_batches(rows, str(TINY_MODEL_PATH), 1),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, list[str]] = {}
    for _ in range(ROUNDS):
        for side, answer in sides.items():
            spent, answers[side] = answer(None)
            seconds[side].append(spent)
    different = sum(a != b for a, b in zip(answers["one by one"], answers["ours"], strict=True))
    table = [(f"{side}: rows per cpu s", spread([MIXED / each for each in seconds[side]], ""), "") for side in sides]
    return [
        *table,
        ("ours / one by one", spread(ratios(seconds["one by one"], seconds["ours"]), "x"), "6"),
        ("answers that differ from one by one", str(different), "0"),
    ]


def draw_mixed(folder: Path, lengths: Sequence[int]) -> list[Any]:
    """Questions about no, one and two drawn pictures (a fifth, 71 % and 9 %), with and without words before them."""
    from ftproject.engine.conversations import Conversation, ResolvedConversation
    from ftproject.engine.tiny.drawings import draw_sample

    folder.mkdir()
    chance = random.Random(0)
    rows = []
    for index in range(MIXED):
        drawn = draw_sample(10_000 + index)
        paths = []
        for number, image in enumerate(drawn.images if index % 5 else ()):
            paths.append(folder / f"{index}-{number}.png")
            image.save(paths[-1])
        words = " ".join(chance.choices(FILLER, k=chance.choice(lengths)))
        prompt = f"{words} {drawn.prompt}".strip()
        talk = Conversation(index, prompt, drawn.answer, drawn.answer, tuple(str(path) for path in paths))
        rows.append(ResolvedConversation(talk, tuple(paths)))
    return rows


def one_by_one(rows: Sequence[Any], model_path: str) -> tuple[float, list[str]]:
    """A row at a time through processor and generate, as the first version of this product did it."""
    import torch
    from PIL import Image
    from transformers import Qwen3VLForConditionalGeneration

    from ftproject.engine.processors import load_processor

    torch.set_num_threads(1)
    model = Qwen3VLForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32).eval()  # nosec B615
    processor = load_processor(model_path)
    began, answers = time.process_time(), []
    for row in rows:
        images = [Image.open(path).convert("RGB") for path in row.image_paths]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": row.conversation.prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=images or None, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=MIXED_TOKENS, do_sample=False)
        answers.append(processor.tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return time.process_time() - began, answers


def in_batches(rows: Sequence[Any], model_path: str, batch_size: int) -> tuple[float, list[str]]:
    """The engine with nothing prepared: a fresh model, no pixels, no tokens."""
    from ftproject.engine.backends import get_backend
    from ftproject.engine.configs import DeviceFacts, GenerationParams
    from ftproject.engine.generation import evaluate_rows

    device = DeviceFacts(cuda=False, name=None, memory_total_mb=None, bf16=False)
    model = get_backend("transformers", device).load("tiny-qwen3-vl", model_path)
    found: dict[int, str] = {}
    began = time.process_time()
    evaluate_rows(
        model,
        rows,
        GenerationParams(max_new_tokens=MIXED_TOKENS, do_sample=False),
        adapter=None,
        batch_size=batch_size,
        on_batch=lambda done: found.update({row.conversation.index: answer.text for row, answer in done}),
    )
    return time.process_time() - began, [found[row.conversation.index] for row in rows]
