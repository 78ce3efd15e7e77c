"""The demo: the main job over HTTP as a user would do it, with real handwritten digits, ending in a table."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ftproject.system.client import ApiClient

DEMO_DIR = Path(__file__).resolve().parent.parent / "engine" / "assets" / "demo"
MAPPING = {
    "prompt_column": "prompt",
    "response_column": "answer",
    "image_url_columns": ["image"],
    "mandatory_columns": ["image"],
}
# The recipe of the tiny model (docs/benchmarks.md); a real 4-bit 8B is trained with the defaults of `{}` instead.
TRAINING: dict[str, Any] = {
    "model_config_data": {"model_name": "tiny-qwen3-vl"},
    "sft_config": {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 4e-3,
        "max_steps": 300,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "bf16": False,
    },
    "lora_config": {"r": 16, "lora_alpha": 32},
    "holdout_fraction": 0.15,
}
METRICS = {
    "Exact match": "exact_match_accuracy",
    "Token precision": "token_precision",
    "Token recall": "token_recall",
    "Token F1": "token_f1",
}


@dataclass
class DemoReport:
    base: dict[str, Any] = field(default_factory=dict)
    finetuned: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)
    question: dict[str, str] = field(default_factory=dict)
    adapter_path: str = ""
    results_csv: Path = Path()
    page: Path = Path()
    seconds: dict[str, float] = field(default_factory=dict)


class Demo:
    def __init__(self, api: ApiClient, console: Console, output_dir: Path) -> None:
        self.api, self.console, self.output_dir = api, console, output_dir
        self.report = DemoReport()

    def run(self, training: dict[str, Any] = TRAINING) -> DemoReport:
        started = time.monotonic()
        with progress_bars(self.console) as bars:
            dataset = self.load_data()
            adapter = self.timed("train", self.train, bars, training)
            self.timed("evaluate both", self.evaluate, bars, adapter)
            self.timed("verdict", self.judge)
            self.export()
            self.timed("compare one prompt", self.compare, adapter, dataset)
        self.report.seconds["whole job"] = time.monotonic() - started
        return self.report

    def timed(self, name: str, step: Any, *arguments: Any) -> Any:
        started = time.monotonic()
        result = step(*arguments)
        self.report.seconds[name] = time.monotonic() - started
        return result

    def load_data(self) -> dict[str, Any]:
        dataset = self.api.upload(DEMO_DIR / "digits.csv")
        self.api.post("/api/datasets/mapping", MAPPING)
        self.console.print(f"Uploaded {dataset['filename']}: {dataset['num_rows']} rows of handwritten digits, mapped.")
        return dataset

    def train(self, bars: Progress, training: dict[str, Any]) -> str:
        run = self.api.post("/api/training/start", training)
        bar = bars.add_task("train: waiting", total=None)

        def show(status: dict[str, Any]) -> None:
            loss = f", loss {status['loss']:.3f}" if status["loss"] is not None else ""
            bars.update(
                bar,
                description=f"train: {status['status']}{loss}",
                total=status["total_steps"],
                completed=status["current_step"] or 0,
            )

        ended = self.api.wait_for_run(f"/api/training/runs/{run['run_id']}", show)
        self.report.adapter_path = ended["adapter_path"]
        return str(ended["adapter_path"])

    def evaluate(self, bars: Progress, adapter: str) -> None:
        """Base and fine-tuned on the held-out rows; queued together, they share one process and one loaded base."""
        runs = [self.start_evaluation(reference, adapter) for reference in (None, adapter)]
        self.report.base, self.report.finetuned = (self.wait_for_evaluation(bars, run) for run in runs)

    def start_evaluation(self, adapter: str | None, split: str) -> dict[str, Any]:
        return self.api.post(
            "/api/evaluation/run", {"adapter_path": adapter, "split_adapter": split, "rows": "heldout"}
        )

    def wait_for_evaluation(self, bars: Progress, run: dict[str, Any]) -> dict[str, Any]:
        name = f"evaluate {run['model_type']}"
        bar = bars.add_task(f"{name}: waiting", total=None)

        def show(status: dict[str, Any]) -> None:
            description = f"{name}: {status['status']}"
            bars.update(bar, description=description, total=status["total"], completed=status["current"] or 0)

        return self.api.wait_for_run(f"/api/evaluation/runs/{run['run_id']}", show)

    def judge(self) -> None:
        """Is the difference more than luck? And the page that shows it row by row."""
        runs = {"baseline_run_id": self.report.base["id"], "candidate_run_id": self.report.finetuned["id"]}
        self.report.verdict = self.api.post("/api/evaluation/compare", {**runs, "page_size": 1})
        self.output_dir.mkdir(parents=True, exist_ok=True)
        target = self.output_dir / "demo_comparison.html"
        self.report.page = self.api.download("/api/evaluation/compare/export", target, **runs, format="html")

    def export(self) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        target = self.output_dir / "demo_results.csv"
        self.report.results_csv = self.api.download(
            f"/api/evaluation/export/{self.report.finetuned['id']}", target, format="csv"
        )

    def compare(self, adapter: str, dataset: dict[str, Any]) -> None:
        run_id = self.report.finetuned["id"]
        sample = self.api.get(f"/api/evaluation/runs/{run_id}/samples", page_size=1)["samples"][0]
        page = self.api.post("/api/datasets/preview", {"page": sample["index"] + 1, "page_size": 1})
        row = page["rows"][0]
        body = {
            "prompt": row["prompt"],
            "image_urls": [row["image"]],
            "adapter_path": adapter,
            "generation_params": {"do_sample": False, "max_new_tokens": 16},
        }
        self.report.question = {"prompt": row["prompt"], "answer": row["answer"], "row": str(sample["index"])}
        self.report.comparison = self.api.post("/api/inference/compare", body)


def progress_bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def print_report(report: DemoReport, console: Console) -> None:
    evaluated = report.finetuned["num_samples"] - report.finetuned["num_skipped"]
    console.print(f"\nBase against fine-tuned on {evaluated} held-out rows that training never saw:")
    table = Table()
    for column in ("", "Base", "Fine-tuned"):
        table.add_column(column, justify="left" if not column else "right")
    for title, name in METRICS.items():
        table.add_row(title, percent(report.base[name]), percent(report.finetuned[name]))
    console.print(table)
    console.print(report.verdict["sentence"])
    asked, told = report.question, report.comparison
    console.print(
        f"Row {asked['row']}: {asked['prompt']}  truth {asked['answer']!r}, "
        f"base {told['base_output']!r}, fine-tuned {told['finetuned_output']!r}"
    )
    console.print("Seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in report.seconds.items()))
    console.print(f"Adapter: {report.adapter_path}", soft_wrap=True)
    console.print(f"Results: {report.results_csv}", soft_wrap=True)
    console.print(f"Row by row: {report.page}", soft_wrap=True)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
