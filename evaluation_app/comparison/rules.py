"""Whether two runs can be compared at all, and what makes their comparison weaker than it looks."""

from collections.abc import Sequence
from typing import Any

from evaluation_app.models import EvaluationRun
from evaluation_app.selectors import get_run
from ftproject.core.errors import ConflictError, InvalidInputError
from ftproject.engine.configs import EVALUATION_GENERATION, parse_generation_params

Notice = dict[str, str]
SAMPLING_FIELDS = ("temperature", "top_p", "min_p", "do_sample", "seed")


def notice(code: str, message: str) -> Notice:
    return {"code": code, "message": message}


def comparable_runs(
    baseline_run_id: int, candidate_run_ids: Sequence[int]
) -> tuple[EvaluationRun, list[EvaluationRun]]:
    """The runs, when each candidate can be paired with the baseline; else the reason why not."""
    if len(set(candidate_run_ids)) != len(candidate_run_ids):
        raise InvalidInputError(
            "A run is named twice in candidate_run_ids.", code="same_run", hint="Name each candidate once."
        )
    baseline = finished(get_run(run_id=baseline_run_id))
    candidates = [finished(get_run(run_id=run_id)) for run_id in candidate_run_ids]
    for candidate in candidates:
        check_pair(baseline, candidate)
    return baseline, candidates


def finished(run: EvaluationRun) -> EvaluationRun:
    if run.status != EvaluationRun.Status.COMPLETED:
        raise ConflictError(
            f"Evaluation run {run.pk} is {run.status}, not completed: rows would be missing on one side only.",
            code="run_not_finished",
            hint=f"Wait until it is completed, or take it up again: GET /api/evaluation/runs/{run.pk}.",
        )
    return run


def check_pair(baseline: EvaluationRun, candidate: EvaluationRun) -> None:
    """Raises when the two runs did not do the same task."""
    if baseline.pk == candidate.pk:
        raise InvalidInputError(
            f"Run {baseline.pk} cannot be compared with itself.",
            code="same_run",
            hint="GET /api/evaluation/runs lists the finished runs.",
        )
    if baseline.dataset.sha256 != candidate.dataset.sha256:
        raise ConflictError(
            f"Run {baseline.pk} answered {baseline.dataset.filename!r}, run {candidate.pk} answered "
            f"{candidate.dataset.filename!r}: their rows are not the same.",
            code="datasets_differ",
            hint="Evaluate both models on one dataset.",
        )
    if truth_column(baseline) != truth_column(candidate):
        raise ConflictError(
            f"Run {baseline.pk} was judged by column {truth_column(baseline)!r}, run {candidate.pk} by "
            f"{truth_column(candidate)!r}.",
            code="ground_truths_differ",
            hint="Evaluate both models under the same mapping.",
        )
    if normalization_of(baseline) != normalization_of(candidate):
        raise ConflictError(
            f"Run {baseline.pk} and run {candidate.pk} normalise answers differently, so right and wrong do not mean "
            "the same in them.",
            code="scoring_differs",
            hint="Evaluate one of them again with the other's normalization; answers of the base model are reused.",
        )


def truth_column(run: EvaluationRun) -> str:
    return str(run.mapping.ground_truth_column or run.mapping.response_column)


def normalization_of(run: EvaluationRun) -> dict[str, Any]:
    """The options that are not at their default; a run from before there were any has none."""
    options = (run.metric_options or {}).get("normalization") or {}
    return {name: value for name, value in options.items() if value}


def metric_parameters(run: EvaluationRun) -> dict[str, Any]:
    return {entry["name"]: entry for entry in (run.metric_options or {}).get("metrics", [])}


def unlike_metrics(baseline: EvaluationRun, candidate: EvaluationRun) -> list[str]:
    """Metrics that both runs have under one name with different parameters."""
    old, new = metric_parameters(baseline), metric_parameters(candidate)
    return sorted(name for name in old.keys() & new.keys() if old[name] != new[name])


def setting_warnings(baseline: EvaluationRun, candidate: EvaluationRun) -> list[Notice]:
    """What else differs between the runs than the adapter: the difference may come from there."""
    found = []
    for code, name, old, new in (
        ("models_differ", "base model", baseline.model_name, candidate.model_name),
        ("backends_differ", "backend", baseline.backend, candidate.backend),
        ("devices_differ", "device", baseline.device, candidate.device),
        ("modes_differ", "mode", baseline.eval_mode, candidate.eval_mode),
    ):
        if old != new:
            found.append(notice(code, f"The {name} differs: {old or 'unknown'} against {new or 'unknown'}."))
    found += changed("model_settings_differ", "Model settings", baseline.model_settings, candidate.model_settings)
    decoded = (effective_params(baseline), effective_params(candidate))
    found += changed("generation_params_differ", "Generation settings", *decoded)
    found += prompt_warnings(baseline, candidate)
    if names := unlike_metrics(baseline, candidate):
        text = f"Left out, because the runs give them different parameters: {', '.join(names)}."
        found.append(notice("metric_parameters_differ", text))
    return found


def is_greedy(run: EvaluationRun) -> bool:
    return parse_generation_params(run.generation_params, EVALUATION_GENERATION).greedy


def effective_params(run: EvaluationRun) -> dict[str, Any]:
    """The settings that had a say: greedy answers depend on none of those that draw."""
    ignored = SAMPLING_FIELDS if is_greedy(run) else ()
    return {name: value for name, value in run.generation_params.items() if name not in ignored}


def changed(code: str, what: str, old: dict[str, Any], new: dict[str, Any]) -> list[Notice]:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if not names:
        return []
    shown = ", ".join(f"{name} {old.get(name)} against {new.get(name)}" for name in names)
    return [notice(code, f"{what} differ: {shown}.")]


def prompt_warnings(baseline: EvaluationRun, candidate: EvaluationRun) -> list[Notice]:
    found = []
    old, new = baseline.mapping, candidate.mapping
    asked = [(item.prompt_column, item.image_url_columns, item.image_separator) for item in (old, new)]
    if asked[0] != asked[1]:
        text = f"The models were not asked the same: mapping {old.version} against mapping {new.version}."
        found.append(notice("prompts_differ", text))
    if not (is_greedy(baseline) and is_greedy(candidate)):
        found.append(
            notice("answers_sampled", "Answers were sampled: the same comparison made again can end otherwise.")
        )
    return found
