"""Estimates of a run's time, memory and disk, each saying how it was made, or why it could not be."""

import math
import shutil
from typing import Any

from datasets_app.preflight.lengths import LengthTally
from datasets_app.preflight.port import MeasuredSpeed, PlannedTraining
from ftproject.core.storage import adapters_dir
from ftproject.engine.configs import TrainingConfig
from ftproject.engine.memory_estimate import adapter_disk_mb, estimate_memory
from ftproject.engine.token_counts import TokenCountError

NO_COUNTS = "needs token counts, and no row could be counted"


def planned_steps(config: TrainingConfig, train_rows: int) -> int:
    """Optimizer steps, as transformers' Trainer counts them."""
    sft = config.sft
    if not sft.use_epochs:
        return sft.max_steps
    batches = math.ceil(train_rows / sft.per_device_train_batch_size)
    steps_per_epoch = max(1, math.ceil(batches / sft.gradient_accumulation_steps))
    return math.ceil(sft.num_train_epochs * steps_per_epoch)


def time_report(
    plan: PlannedTraining, lengths: LengthTally, train_rows: int, speed: MeasuredSpeed | None
) -> dict[str, Any]:
    config = plan.effective.config
    steps = planned_steps(config, train_rows)
    per_step = config.sft.per_device_train_batch_size * config.sft.gradient_accumulation_steps
    rows = (
        min(steps * per_step, train_rows * config.sft.num_train_epochs) if config.sft.use_epochs else steps * per_step
    )
    facts: dict[str, Any] = {"steps": steps, "rows": round(rows), "tokens": None, "seconds": None, "how": NO_COUNTS}
    if lengths.mean is None:
        return facts
    facts["tokens"] = round(rows * lengths.mean)
    counted = f"{facts['rows']} rows x {lengths.mean:.1f} tokens on average"
    if speed is None:
        nothing = f"no completed run of {plan.effective.model_name} on {plan.device} to take the speed from"
        return {**facts, "how": f"{counted}; {nothing}"}
    how = f"{counted} / {speed.tokens_per_second:.0f} tokens a second as in training run {speed.run_id}"
    return {
        **facts,
        "seconds": round(rows * lengths.mean / speed.tokens_per_second, 1),
        "how": f"{how}; loading and saving come on top, and other settings than that run's change it",
    }


def memory_report(plan: PlannedTraining, lengths: LengthTally, speed: MeasuredSpeed | None) -> dict[str, Any]:
    measured = {"run_id": speed.run_id, "peak_mb": speed.peak_memory_mb} if speed and speed.peak_memory_mb else None
    facts: dict[str, Any] = {
        "total_mb": None,
        "device_mb": plan.memory_total_mb,
        "fits": None,
        "terms": [],
        "measured": measured,
    }
    longest, vision = lengths.longest_trained
    if not longest:
        return {**facts, "how": NO_COUNTS}
    try:
        terms = estimate_memory(
            plan.effective.model_path, plan.effective.config, cuda=plan.cuda, longest=longest, longest_vision=vision
        )
    except TokenCountError as exc:
        return {**facts, "how": exc.message}
    total = sum(term.mb for term in terms)
    return {
        **facts,
        "total_mb": round(total),
        "fits": None if plan.memory_total_mb is None else total <= plan.memory_total_mb,
        "terms": [{"name": term.name, "mb": round(term.mb, 1), "how": term.how} for term in terms],
        "how": "the sum of the terms, good to about a third; a batch of the longest rows",
    }


def disk_report(plan: PlannedTraining, free_mb_wanted: int) -> dict[str, Any]:
    try:
        needed = round(adapter_disk_mb(plan.effective.model_path, plan.effective.config), 1)
        how = "adapter and checkpoints: LoRA parameters x 4 bytes, with the optimizer's state for checkpoints"
    except TokenCountError as exc:
        needed, how = None, exc.message
    free = free_disk_mb()
    wanted = max(free_mb_wanted, math.ceil(needed or 0))
    return {"needed_mb": needed, "wanted_free_mb": wanted, "free_mb": free, "enough": free >= wanted, "how": how}


def free_disk_mb() -> int:
    return shutil.disk_usage(adapters_dir()).free // 2**20
