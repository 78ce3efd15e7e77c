"""A run that goes on from a checkpoint is the run that was never interrupted: weights, losses, patience, best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.backends.base import TrainingError, TrainingJob, TrainingProgress, TrainingResult
from ftproject.engine.checkpoints import list_checkpoints
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.training import train
from tests.engine.support import CPU, Recorder, row, training_job

pytestmark = pytest.mark.slow

# Everything that could tell a resumed run from a straight one: dropout (random numbers in every step), accumulation,
# epochs that end within the run, batches by length, answers generated in between, losses logged over two steps.
RICH: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "use_epochs": True,
    "num_train_epochs": 3,
    "group_by_length": True,
    "eval_steps": 2,
    "eval_generation_rows": 3,
    "logging_steps": 2,
    "early_stopping_patience": 50,
    "save_steps": 1,
    "save_total_limit": 100,
}


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def with_dropout(job: TrainingJob) -> TrainingJob:
    config = job.effective.config
    config = replace(config, lora=replace(config.lora, lora_dropout=0.1))
    return replace(job, effective=replace(job.effective, config=config))


def figures(result: TrainingResult) -> dict[str, Any]:
    """What a resumed run must report like the straight one; its speed is its own."""
    return {name: value for name, value in result.metrics.items() if name != "tokens_per_second"}


@dataclass
class Asker(Recorder):
    """Asks for a stop at the nth question, whoever asks."""

    stop_at_question: int = 0
    questions: list[int] = field(default_factory=list)

    def should_stop(self) -> bool:
        self.questions.append(self.progress[-1].step if self.progress else 0)
        return 0 < self.stop_at_question <= len(self.questions)


@pytest.fixture(scope="module")
def rows(digit_rows: list[ResolvedConversation]) -> list[ResolvedConversation]:
    """22 rows of several lengths: three steps an epoch, the last of them short."""
    return [
        replace(item, conversation=replace(item.conversation, prompt=item.conversation.prompt + " please" * (at % 5)))
        for at, item in enumerate(digit_rows[:22])
    ]


@pytest.fixture(scope="module")
def heldout(digit_rows: list[ResolvedConversation]) -> list[ResolvedConversation]:
    return digit_rows[40:50]


@dataclass(frozen=True)
class StraightRun:
    job: TrainingJob
    result: TrainingResult
    recorder: Asker

    def checkpoint(self, step: int) -> Path:
        return self.job.work_dir / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory, rows: list[ResolvedConversation], heldout: list[ResolvedConversation]
) -> StraightRun:
    job = with_dropout(training_job(tmp_path_factory.mktemp("straight"), rows, heldout, **RICH))
    recorder = Asker()
    return StraightRun(job, train(job, recorder, device=CPU), recorder)


def resume(straight: StraightRun, step: int, folder: Path) -> tuple[TrainingResult, Recorder]:
    recorder = Recorder()
    job = replace(
        straight.job,
        adapter_dir=folder / "adapter",
        work_dir=folder / "work",
        resume_from_checkpoint=straight.checkpoint(step),
    )
    return train(job, recorder, device=CPU), recorder


# In the first epoch, at its end, between two logged steps, in the last epoch.
@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_a_run_resumed_at_any_step_ends_in_the_same_bytes(straight: StraightRun, step: int, tmp_path: Path) -> None:
    result, recorder = resume(straight, step, tmp_path)
    assert weights(result.adapter_path) == weights(straight.result.adapter_path)
    assert (result.steps, result.total_steps) == (9, 9)
    assert figures(result) == figures(straight.result)
    own = [item for item in straight.recorder.progress if item.step > step]
    assert [replace(item, eta_seconds=None) for item in recorder.progress] == [
        replace(item, eta_seconds=None) for item in own
    ]


def test_the_log_of_a_resumed_run_is_whole(straight: StraightRun, tmp_path: Path) -> None:
    resume(straight, 5, tmp_path)

    def log(work_dir: Path) -> list[dict[str, float]]:
        history = json.loads((work_dir / "checkpoint-9" / "trainer_state.json").read_text())["log_history"]
        return [
            {name: entry[name] for name in entry if "per_second" not in name and "runtime" not in name}
            for entry in history
        ]

    assert log(tmp_path / "work") == log(straight.job.work_dir)


def test_a_resumed_run_tells_what_was_logged_before_it(straight: StraightRun, tmp_path: Path) -> None:
    def figures_by_step(entries: Sequence[TrainingProgress]) -> dict[int, dict[str, float]]:
        by_step: dict[int, dict[str, float]] = {}
        for entry in entries:
            known = {
                name: value for name, value in asdict(entry).items() if value is not None and name != "eta_seconds"
            }
            if {"loss", "eval_loss"} & known.keys():
                by_step.setdefault(entry.step, {}).update(known)
        return by_step

    _, recorder = resume(straight, 8, tmp_path)
    told = figures_by_step(straight.recorder.progress)
    assert figures_by_step(recorder.history) == {step: told[step] for step in told if step <= 8}
    assert straight.recorder.history == []


def test_a_run_that_died_after_its_last_step_is_only_saved(straight: StraightRun, tmp_path: Path) -> None:
    result, recorder = resume(straight, 9, tmp_path)
    assert recorder.progress == []
    assert weights(result.adapter_path) == weights(straight.result.adapter_path)
    assert figures(result) == figures(straight.result)


def test_a_continuation_does_not_need_the_folder_it_came_from(straight: StraightRun, tmp_path: Path) -> None:
    resume(straight, 5, tmp_path)
    assert [item.step for item in list_checkpoints(tmp_path / "work")] == [5, 6, 7, 8, 9]
    before = (straight.checkpoint(5) / "optimizer.pt").read_bytes()
    assert (tmp_path / "work" / "checkpoint-5" / "optimizer.pt").read_bytes() == before


def test_answering_heldout_rows_meanwhile_changes_no_weight(
    straight: StraightRun, rows: list[ResolvedConversation], tmp_path: Path
) -> None:
    quiet = {name: value for name, value in RICH.items() if not name.startswith(("eval", "early"))}
    job = with_dropout(training_job(tmp_path, rows, **quiet))
    result = train(job, Recorder(), device=CPU)
    assert weights(result.adapter_path) == weights(straight.result.adapter_path)
    scores = [item for item in straight.recorder.progress if item.eval_exact_match is not None]
    assert [item.step for item in scores] == [2, 4, 6, 8, 9]
    assert all(0 <= (item.eval_token_f1 or 0) <= 1 for item in scores)


def test_a_stop_within_an_evaluation_returns_at_once_and_the_run_can_go_on_exactly(
    straight: StraightRun, tmp_path: Path
) -> None:
    # Step 4 is told by its loss; what is asked after that is asked by its evaluation.
    first = straight.recorder.questions.index(4) + 1
    stopper = Asker(stop_at_question=first + 1)
    job = replace(straight.job, adapter_dir=tmp_path / "b" / "adapter", work_dir=tmp_path / "b" / "work")
    stopped = train(job, stopper, device=CPU)
    assert (stopped.steps, stopped.stopped_early, stopped.ended_by) == (4, True, "stop")
    assert len(stopper.questions) == first + 1, "the evaluation went on after the stop"
    assert stopped.metrics["eval_loss"] is not None, "the best adapter so far was kept, with its loss"
    assert stopped.checkpoint_path is not None
    result, recorder = resume(StraightRun(job, stopped, stopper), 4, tmp_path / "c")
    assert recorder.progress[0].step == 4
    assert recorder.progress[0].eval_loss is not None
    assert weights(result.adapter_path) == weights(straight.result.adapter_path)
    assert figures(result) == figures(straight.result)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, digit_rows: list[ResolvedConversation]) -> StraightRun:
    """Held-out answers that contradict the trained ones: early stopping ends the run."""
    wrong = [row(item.conversation.index, response="shape", images=item.image_paths) for item in digit_rows[:8]]
    settings = {"max_steps": 60, "eval_steps": 3, "early_stopping_patience": 3, "learning_rate": 1e-2}
    job = training_job(
        tmp_path_factory.mktemp("impatient"), digit_rows[:16], wrong, save_steps=1, save_total_limit=100, **settings
    )
    recorder = Asker()
    return StraightRun(job, train(job, recorder, device=CPU), recorder)


def test_early_stopping_says_which_step_it_kept_and_keeps_it(impatient: StraightRun) -> None:
    import torch
    from safetensors.torch import load_file

    losses = {item.step: item.eval_loss for item in impatient.recorder.progress if item.eval_loss is not None}
    best = min(losses, key=lambda step: losses[step] or 0.0)
    result = impatient.result
    assert (result.ended_by, result.best_step, result.stopped_early) == ("patience", best, True)
    assert result.steps == best + 3 * 3
    assert result.metrics["eval_loss"] == losses[best]
    assert any(f"step {best}" in warning for warning in result.warnings)
    provenance = json.loads((result.adapter_path / "provenance.json").read_text())
    assert (provenance["best_step"], provenance["ended_by"]) == (best, "patience")
    saved, at_best, at_last = (
        load_file(str(folder / "adapter_model.safetensors"))
        for folder in (result.adapter_path, impatient.checkpoint(best), impatient.checkpoint(result.steps))
    )
    assert saved.keys() == at_best.keys()
    assert all(torch.equal(saved[name], at_best[name]) for name in saved)
    assert not all(torch.equal(saved[name], at_last[name]) for name in saved)


def test_patience_and_the_best_adapter_survive_a_resume(impatient: StraightRun, tmp_path: Path) -> None:
    best = impatient.result.best_step or 0
    for place, step in enumerate((best + 1, best + 7, impatient.result.steps)):
        result, recorder = resume(impatient, step, tmp_path / str(place))
        assert (result.steps, result.best_step, result.ended_by) == (impatient.result.steps, best, "patience")
        assert weights(result.adapter_path) == weights(impatient.result.adapter_path)
        assert figures(result) == figures(impatient.result)
    assert recorder.progress == [], "nothing is left to train when patience was at its end"


def refused(job: TrainingJob) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        train(job, Recorder(), device=CPU)
    assert not job.adapter_dir.exists()
    return caught.value


def other_rows(rows: Sequence[ResolvedConversation]) -> dict[str, list[ResolvedConversation]]:
    changed = replace(rows[3], conversation=replace(rows[3].conversation, response="8 or so"))
    return {"one less": list(rows[:-1]), "another answer": [*rows[:3], changed, *rows[4:]], "turned": list(rows[::-1])}


@pytest.mark.parametrize("change", ["one less", "another answer", "turned"])
def test_a_checkpoint_of_other_rows_is_refused(
    straight: StraightRun, rows: list[ResolvedConversation], change: str, tmp_path: Path
) -> None:
    job = replace(
        straight.job,
        rows=other_rows(rows)[change],
        adapter_dir=tmp_path / "adapter",
        work_dir=tmp_path / "work",
        resume_from_checkpoint=straight.checkpoint(5),
    )
    error = refused(job)
    assert error.code == "checkpoint_mismatch"
    assert "training rows are not those of the checkpoint" in error.message


def test_a_checkpoint_of_other_settings_is_refused_by_the_settings_name(straight: StraightRun, tmp_path: Path) -> None:
    config = straight.job.effective.config
    config = replace(config, sft=replace(config.sft, learning_rate=1e-5, save_total_limit=3))
    job = replace(
        straight.job,
        effective=replace(straight.job.effective, config=config),
        adapter_dir=tmp_path / "adapter",
        work_dir=tmp_path / "work",
        resume_from_checkpoint=straight.checkpoint(5),
    )
    error = refused(job)
    assert "sft_config.learning_rate was 0.004 and is 1e-05" in error.message
    assert "save_total_limit" not in error.message


def test_a_checkpoint_that_lacks_a_file_is_refused(straight: StraightRun, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "checkpoint-5"
    shutil.copytree(straight.checkpoint(5), broken)
    (broken / "optimizer.pt").write_bytes(b"half")
    job = replace(
        straight.job, adapter_dir=tmp_path / "adapter", work_dir=tmp_path / "work", resume_from_checkpoint=broken
    )
    assert refused(job).code == "checkpoint_incomplete"
