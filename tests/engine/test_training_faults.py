"""What goes wrong while training, and what is left of the run: a full disk, no memory, a stop, numbers that break."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.backends.base import TrainingError, TrainingProgress
from ftproject.engine.batches import ROWS_KEY, Collate
from ftproject.engine.checkpoints import list_checkpoints
from ftproject.engine.configs import EffectiveConfig
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.training import NOTHING_HELD_OUT, TrainableModel, run_training, train
from tests.engine.support import CPU, Recorder, row, training_job

pytestmark = pytest.mark.slow


@dataclass
class FullDisk(Recorder):
    """No file may grow beyond `largest` bytes from a moment on, until the first warning about it: a real EFBIG.

    Python ignores the signal that comes with it, so write() fails as it does on a full disk.
    """

    largest: int = 0
    from_step: int | None = None
    from_phase: str | None = None

    def on_phase(self, phase: str, message: str) -> None:
        super().on_phase(phase, message)
        if phase == self.from_phase:
            self.fill()

    def on_progress(self, progress: TrainingProgress) -> None:
        super().on_progress(progress)
        if progress.step == self.from_step:
            self.fill()

    def on_warning(self, message: str) -> None:
        super().on_warning(message)
        if "could not be written" in message:
            self.empty()

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest, resource.RLIM_INFINITY))

    def empty(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def disk(recorder: FullDisk) -> Iterator[FullDisk]:
    try:
        yield recorder
    finally:
        recorder.empty()


def steps_saved(work_dir: Path) -> list[int]:
    return [item.step for item in list_checkpoints(work_dir)]


@pytest.mark.parametrize("largest", [200_000, 900_000])
def test_a_disk_that_fills_up_costs_a_checkpoint_and_not_the_run(
    largest: int, tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    # 200 kB: the adapter's weights fail (safetensors); 900 kB: the optimizer's state fails (torch).
    job = training_job(tmp_path, digit_rows[:16], max_steps=6, save_steps=2, save_total_limit=5)
    with disk(FullDisk(largest=largest, from_step=3)) as recorder:
        result = train(job, recorder, device=CPU)
    assert steps_saved(job.work_dir) == [2, 6]
    assert not list(job.work_dir.glob(".writing-*"))
    assert any("step 4 could not be written" in text and "from checkpoint-2" in text for text in recorder.warnings)
    assert result.steps == 6
    assert result.adapter_effective is True


def test_older_checkpoints_make_room_for_the_adapter(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    job = training_job(tmp_path, digit_rows[:16], max_steps=6, save_steps=2, save_total_limit=5)
    with disk(FullDisk(largest=200_000, from_phase="saving")) as recorder:
        result = train(job, recorder, device=CPU)
    assert result.adapter_effective is True
    assert steps_saved(job.work_dir) == [6]
    assert any("make room" in text for text in result.warnings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "work"]


def test_a_run_whose_adapter_finds_no_room_can_be_saved_later_from_its_last_step(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    class Stubborn(FullDisk):
        def on_warning(self, message: str) -> None:
            self.warnings.append(message)

    job = training_job(tmp_path, digit_rows[:16], max_steps=4, save_steps=2)
    with disk(Stubborn(largest=200_000, from_phase="saving")) as recorder, pytest.raises(Exception, match="rror"):
        train(job, recorder, device=CPU)
    assert steps_saved(job.work_dir) == [4]
    assert not job.adapter_dir.exists()
    again = replace(job, resume_from_checkpoint=job.work_dir / "checkpoint-4")
    assert train(again, Recorder(), device=CPU).steps == 4


def out_of_memory_in(batch: int) -> Any:
    """Builds the tiny model with a forward pass that finds no memory in its nth batch."""
    import torch

    from ftproject.engine.backends.transformers import build_trainable

    def build(effective: EffectiveConfig) -> TrainableModel:
        trainable = build_trainable(effective)
        seen = []

        def refuse(*_: Any) -> None:
            seen.append(1)
            if len(seen) == batch:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        trainable.model.register_forward_pre_hook(refuse)
        return trainable

    return build


def test_lack_of_memory_names_the_setting_to_lower_and_the_rows_with_their_lengths(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    rows = [
        replace(digit_rows[0], conversation=replace(digit_rows[0].conversation, index=7)),
        row(8, prompt="why " * 30),
    ]
    job = training_job(tmp_path, rows, max_steps=4, per_device_train_batch_size=2)
    with pytest.raises(TrainingError) as caught:
        run_training(job, Recorder(), out_of_memory_in(2))
    assert caught.value.code == "out_of_memory"
    message = caught.value.message
    assert "lower per_device_train_batch_size from 2 to 1 (gradient_accumulation_steps 2 keeps" in message
    assert "set gradient_checkpointing to true" in message
    assert "lower max_seq_length below" in message
    assert re.search(r"row 7: \d\d tokens, 4 of them image", message)
    assert re.search(r"row 8: \d\d tokens, 0 of them image", message)
    assert not job.adapter_dir.exists()


def test_lack_of_memory_while_loading_is_said_to_be_before_the_first_batch(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    def build(_: EffectiveConfig) -> TrainableModel:
        raise MemoryError

    with pytest.raises(TrainingError, match="before the first batch") as caught:
        run_training(training_job(tmp_path, digit_rows[:4]), Recorder(), build)
    assert caught.value.code == "out_of_memory"


@pytest.mark.parametrize("phase", ["preparing_data", "training"])
def test_a_stop_before_the_first_step_makes_no_adapter_and_says_so(
    phase: str, tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    class StopsAt(Recorder):
        def should_stop(self) -> bool:
            return self.phases[-1] == phase

    recorder = StopsAt()
    job = training_job(tmp_path, digit_rows[:16], max_steps=50)
    with pytest.raises(TrainingError, match="before the first step: no adapter was made") as caught:
        train(job, recorder, device=CPU)
    assert caught.value.code == "stopped"
    assert recorder.progress == []
    assert not job.adapter_dir.exists()
    assert steps_saved(job.work_dir) == []


def test_a_heldout_loss_that_is_not_finite_ends_the_run_and_names_its_rows(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    from ftproject.engine.backends.transformers import build_trainable

    def build(effective: EffectiveConfig) -> TrainableModel:
        trainable = build_trainable(effective)

        def break_evaluation(module: Any, _: Any, output: Any) -> Any:
            if not module.training:
                output.loss = output.loss * float("nan")
            return output

        trainable.model.register_forward_hook(break_evaluation)
        return trainable

    job = training_job(tmp_path, digit_rows[:8], digit_rows[30:33], max_steps=4, eval_steps=2)
    with pytest.raises(TrainingError, match="held-out loss after step 2 is not finite; its rows are 30, 31, 32"):
        run_training(job, Recorder(), build)
    assert not job.adapter_dir.exists()


@pytest.mark.parametrize("logging_steps", [1, 50])
def test_a_loss_that_is_not_finite_names_the_rows_of_its_own_pass_alone(
    logging_steps: int, tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    from ftproject.engine.backends.transformers import build_trainable

    def build(effective: EffectiveConfig) -> TrainableModel:
        trainable = build_trainable(effective)

        def collator(*rows: Any) -> Collate:
            collate = trainable.collator(*rows)

            def breaking(features: Any) -> dict[str, Any]:
                batch = collate(features)
                if 5 in batch[ROWS_KEY]:
                    batch["pixel_values"] = batch["pixel_values"] * float("nan")
                return batch

            return breaking

        return replace(trainable, collator=collator)

    job = training_job(
        tmp_path,
        digit_rows[:8],
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=logging_steps,
    )
    with pytest.raises(TrainingError, match=r"the loss of step [12] is not finite; its rows are (5, \d|\d, 5)\."):
        run_training(job, Recorder(), build)
    assert steps_saved(job.work_dir) == []


def test_heldout_rows_of_which_none_can_be_used_are_missed_aloud(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    long, recorder = row(90, prompt="why " * 100), Recorder()
    settings = {"max_steps": 1, "eval_steps": 1, "early_stopping_patience": 1, "max_seq_length": 64}
    result = train(training_job(tmp_path, digit_rows[:4], [long], **settings), recorder, device=CPU)
    assert result.metrics["eval_loss"] is None
    assert NOTHING_HELD_OUT in recorder.warnings
    assert NOTHING_HELD_OUT in json.loads((result.adapter_path / "provenance.json").read_text())["warnings"]


def test_a_gradient_that_is_not_finite_ends_the_run_in_its_own_step(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    from ftproject.engine.backends.transformers import build_trainable

    def build(effective: EffectiveConfig) -> TrainableModel:
        trainable = build_trainable(effective)
        weight = next(item for item in trainable.model.parameters() if item.requires_grad)
        weight.register_hook(lambda gradient: gradient * float("inf"))
        return trainable

    job = training_job(tmp_path, digit_rows[:8], max_steps=4)
    with pytest.raises(TrainingError, match=r"gradient of step 1 is not finite; its rows are (\d, ){7}\d"):
        run_training(job, Recorder(), build)


def test_tensorboard_gets_every_logged_figure_below_the_given_folder_and_only_when_asked(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    job = training_job(
        tmp_path, digit_rows[:8], digit_rows[30:34], max_steps=4, eval_steps=2, report_to="tensorboard", save_steps=2
    )
    recorder = Recorder()
    train(replace(job, log_dir=logs), recorder, device=CPU)
    events = EventAccumulator(str(logs)).Reload()
    assert [item.step for item in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [item.value for item in events.Scalars("train/loss")] == pytest.approx(recorder.losses)
    assert [item.step for item in events.Scalars("eval/loss")] == [2, 4]
    resumed = replace(
        job,
        adapter_dir=tmp_path / "b",
        work_dir=tmp_path / "c",
        log_dir=tmp_path / "d",
        resume_from_checkpoint=job.work_dir / "checkpoint-2",
    )
    train(resumed, Recorder(), device=CPU)
    again = EventAccumulator(str(tmp_path / "d")).Reload()
    assert [item.step for item in again.Scalars("train/loss")] == [1, 2, 3, 4]
    quiet = training_job(tmp_path / "quiet", digit_rows[:8], max_steps=1)
    train(replace(quiet, log_dir=tmp_path / "none"), Recorder(), device=CPU)
    assert not (tmp_path / "none").exists()


def test_skipped_rows_are_told_by_number_with_their_tokens_and_are_no_part_of_the_split(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    long = [row(900 + place, prompt="why " * 100) for place in range(30)]
    recorder = Recorder()
    job = training_job(tmp_path, [*digit_rows[:5], *long], [digit_rows[9], long[0]], max_steps=1, max_seq_length=64)
    job = replace(job, provenance={"split": {"trained_rows": "0-4,900-929", "heldout_rows": "9,900"}})
    result = train(job, recorder, device=CPU)
    provenance = json.loads((result.adapter_path / "provenance.json").read_text())
    assert provenance["split"] == {"trained_rows": "0-4", "heldout_rows": "9"}
    assert provenance["rows"] == {"trained": 5, "heldout": 1, "skipped": 31}
    assert provenance["skipped_row_numbers"] == "900-929"
    assert all(item["tokens"] > 100 for item in provenance["skipped_rows"])
    assert provenance["skipped_rows_not_listed"] == 0
    said = next(text for text in recorder.warnings if "skipped" in text)
    assert "31 rows skipped" in said
    assert "and 11 more" in said
