"""What to know before believing a comparison: each doubt has a stable code and a sentence."""

from __future__ import annotations

from evaluation_app.comparison.judged import PairedRuns
from evaluation_app.comparison.loading import UNKNOWN
from evaluation_app.comparison.pairing import ALL, UNSEEN
from evaluation_app.comparison.provenance import Provenance
from evaluation_app.comparison.rules import Notice, notice, setting_warnings
from evaluation_app.comparison.verdict import Evidence
from evaluation_app.models import EvaluationRun
from ftproject.engine.splits import decode_ranges

FEW_ROWS = 30


def doubts_about(paired: PairedRuns, evidence: Evidence) -> list[Notice]:
    """The most serious first."""
    return [
        *_about_training(paired),
        *setting_warnings(paired.baseline, paired.candidate),
        *_about_rows(paired, evidence),
        *_about_reuse(paired),
    ]


def _about_training(paired: PairedRuns) -> list[Notice]:
    seen, unknown = int((paired.judged.seen == 1).sum()), int((paired.judged.seen == UNKNOWN).sum())
    found = []
    if seen:
        text = f"Training saw {seen} of the {len(paired.judged)} rows: what is better there is no proof."
        found.append(notice("seen_rows", text))
    if unknown:
        text = (
            f"For {unknown} of the {len(paired.judged)} rows nobody knows whether training saw them: the model came "
            "from elsewhere, or what it was trained on is gone. If it saw them, a gain is no proof."
        )
        found.append(notice("split_unknown", text))
    if paired.recognised:
        text = (
            "The model was trained on another dataset: rows that it saw are told by their image cells, or by their "
            "prompt without one. The same image under another address is not recognised."
        )
        found.append(notice("split_by_content", text))
    left = len(paired.pairs) - len(paired.judged)
    if paired.rows == UNSEEN and left:
        text = f"{left} rows that training saw are left out of the verdict; `parts` counts them."
        found.append(notice("seen_rows_left_out", text))
    return found + _about_leaks(paired)


def _about_leaks(paired: PairedRuns) -> list[Notice]:
    trained = [row for provenance in paired.provenances for row in _trained_rows(provenance, paired.baseline)]
    unseen = paired.judged.index[paired.judged.seen == 0]
    if not trained or not unseen.size:
        return []
    count = int(paired.links.sharing(unseen, paired.links.things_of(trained)).sum())
    text = f"{count} of the unseen rows show an image, or ask a prompt without one, that training saw in another row."
    return [notice("unseen_rows_resemble_seen", text)] if count else []


def _trained_rows(provenance: Provenance, run: EvaluationRun) -> list[int]:
    here = (training for training in provenance.trainings if training.dataset_id == run.dataset_id)
    return [row for training in here for row in decode_ranges(training.trained_rows)]


def _about_rows(paired: PairedRuns, evidence: Evidence) -> list[Notice]:
    found = []
    left_out = paired.left_out
    skipped = left_out.skipped_in_baseline + left_out.skipped_in_candidate + left_out.skipped_in_both
    reasons = {
        "skipped": skipped,
        "only in the baseline": left_out.only_in_baseline,
        "only in the candidate": left_out.only_in_candidate,
        "without a label": left_out.without_label,
    }
    if any(reasons.values()):
        shown = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        found.append(notice("rows_not_compared", f"Rows that are not compared: {shown}."))
    if evidence.num_units < evidence.num_rows:
        text = (
            f"The {evidence.num_rows} rows are {evidence.num_units} groups that share an image (or a prompt without"
            " one). Rows of a group are no independent witnesses: test and intervals count groups."
        )
        found.append(notice("rows_share_images", text))
    if 0 < evidence.num_units < FEW_ROWS:
        text = f"{evidence.num_units} independent rows are few: only large differences can be told from luck."
        found.append(notice("few_rows", text))
    if paired.rows == ALL and paired.trained and not (paired.pairs.seen == 0).any() and len(paired.pairs):
        found.append(notice("no_unseen_rows", "No row is known to be unseen: evaluate with rows=heldout for a proof."))
    return found


def _about_reuse(paired: PairedRuns) -> list[Notice]:
    found = []
    for side, run, count in zip(
        ("baseline", "candidate"), (paired.baseline, paired.candidate), paired.num_reused, strict=True
    ):
        if count:
            text = f"{count} answers of the {side} (run {run.pk}) are copies of earlier ones, same model and settings."
            found.append(notice("answers_reused", text))
    return found
