"""Evaluation runs and their samples, one per dataset row."""

from datetime import datetime
from typing import Any, ClassVar

from django.db import models

from datasets_app.models import ColumnMapping, Dataset
from evaluation_app.brief import brief_metrics
from ftproject.core.events import publish
from ftproject.core.jobs import Job
from training_app.models import Adapter


class EvaluationRun(Job):
    """One model answering the rows of one dataset; the state machine is `Job`'s with `evaluating` as its work."""

    KIND: ClassVar[str] = "evaluation"

    class ModelType(models.TextChoices):
        BASE = "base"
        FINETUNED = "finetuned"

    class EvalMode(models.TextChoices):
        TOKEN = "token"  # noqa: S105
        CLASSIFICATION = "classification"

    class Rows(models.TextChoices):
        ALL = "all"
        HELDOUT = "heldout"
        TRAINED = "trained"

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="evaluation_runs")
    mapping = models.ForeignKey(ColumnMapping, on_delete=models.PROTECT, related_name="evaluation_runs")
    adapter = models.ForeignKey(
        Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="evaluation_runs"
    )
    # The adapter whose split `rows` and `seen_in_training` refer to; for a base run it may be named without being used.
    split_adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    model_type = models.CharField(max_length=16, choices=ModelType.choices)
    model_name = models.CharField(max_length=500)
    device = models.CharField(max_length=200, blank=True, default="")
    backend = models.CharField(max_length=32, blank=True, default="")
    # How the base is loaded (4 bit, pixels, length): the adapter's own, decided when the run was queued.
    model_settings = models.JSONField(default=dict)
    eval_mode = models.CharField(max_length=16, choices=EvalMode.choices, default=EvalMode.TOKEN)
    positive_label = models.CharField(max_length=200, null=True, blank=True)
    # What `ftproject.engine.metrics.ScoringOptions.to_dict` wrote: metrics with parameters, normalization, confidence.
    metric_options = models.JSONField(default=dict, blank=True)
    sample_limit = models.BigIntegerField(null=True, blank=True)
    rows = models.CharField(max_length=16, choices=Rows.choices, default=Rows.ALL)
    generation_params = models.JSONField(default=dict)
    current = models.IntegerField(default=0)
    total = models.IntegerField(null=True, blank=True)
    eta_seconds = models.FloatField(null=True, blank=True)
    num_samples = models.IntegerField(null=True, blank=True)
    num_skipped = models.IntegerField(null=True, blank=True)
    exact_match_accuracy = models.FloatField(null=True, blank=True)
    token_precision = models.FloatField(null=True, blank=True)
    token_recall = models.FloatField(null=True, blank=True)
    token_f1 = models.FloatField(null=True, blank=True)
    metrics = models.JSONField(default=dict, blank=True)
    reuse_base_predictions = models.BooleanField(default=True)
    num_reused = models.IntegerField(default=0)
    # Numbers of the runs whose answers were copied; plain numbers, because those runs may be deleted.
    reused_from = models.JSONField(default=list, blank=True)
    # What the answers came from, beside the settings: weights, versions, device. A resume must find the same weights.
    engine_facts = models.JSONField(default=dict, blank=True)
    # A resumed run waits at the end of the queue, whenever it was created.
    reopened_at = models.DateTimeField(null=True, blank=True)
    resume_key = models.CharField(max_length=200, null=True, blank=True)

    class Meta(Job.Meta):
        abstract = False

    @property
    def waits_since(self) -> datetime:
        return self.reopened_at or self.created_at

    def on_end(self) -> None:
        """Publishes eval_complete or eval_error."""
        if self.status == self.Status.ERROR:
            publish(
                "eval_error",
                {"run_id": self.pk, "error": self.error or ""},
                run_kind=self.KIND,
                run_id=self.pk,
            )
            return
        metrics: dict[str, Any] = {
            "exact_match_accuracy": self.exact_match_accuracy,
            "token_precision": self.token_precision,
            "token_recall": self.token_recall,
            "token_f1": self.token_f1,
            **brief_metrics(self.metrics),
        }
        publish(
            "eval_complete",
            {"run_id": self.pk, "model_type": self.model_type, "metrics": metrics},
            run_kind=self.KIND,
            run_id=self.pk,
        )


class Sample(models.Model):
    """One dataset row in one evaluation run; skipped rows have a sample too, so rows stay aligned."""

    run = models.ForeignKey(EvaluationRun, on_delete=models.CASCADE, related_name="samples")
    index = models.BigIntegerField()
    prompt = models.TextField()
    ground_truth = models.TextField()
    prediction = models.TextField(blank=True, default="")
    exact_match = models.BooleanField(null=True, blank=True)
    token_precision = models.FloatField(null=True, blank=True)
    token_recall = models.FloatField(null=True, blank=True)
    token_f1 = models.FloatField(null=True, blank=True)
    # Metric name -> value, or null where the metric is undefined for this row; only the metrics that the run names.
    scores = models.JSONField(default=dict, blank=True)
    # Metric name -> what the figures of a run are summed from: {"cer": {"edits": 2, "reference_length": 9}}.
    score_details = models.JSONField(default=dict, blank=True)
    label = models.CharField(max_length=200, null=True, blank=True)
    # The probability of `label` among the labels of the run, when the run asked for confidence.
    confidence = models.FloatField(null=True, blank=True)
    label_probabilities = models.JSONField(null=True, blank=True)
    seen_in_training = models.BooleanField(null=True, blank=True)
    skipped = models.BooleanField(default=False)
    skipped_reason = models.CharField(max_length=500, null=True, blank=True)
    prompt_tokens = models.IntegerField(null=True, blank=True)
    completion_tokens = models.IntegerField(null=True, blank=True)
    finish_reason = models.CharField(max_length=16, null=True, blank=True)
    # Image cells of the row, for links to its pictures; null for samples that were made before it was kept.
    num_images = models.PositiveIntegerField(null=True, blank=True)
    # Copied from an earlier run with the same `answer_key`; see `evaluation_app.reuse`.
    reused = models.BooleanField(default=False)
    # Everything a greedy answer of a base model depends on, as a sha256; empty for every other answer.
    answer_key = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        ordering: ClassVar = ["index"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["run", "index"], name="one_sample_per_row")]
        indexes: ClassVar = [
            # Worst and best first, and the counts of every filter, out of the index alone: of 500,000 samples in 26 ms
            # instead of 60 to 540 (measured on SQLite).
            models.Index(
                fields=["run", "token_f1", "index", "exact_match", "skipped", "seen_in_training", "reused"],
                name="samples_by_token_f1",
            ),
            models.Index(fields=["answer_key"], condition=~models.Q(answer_key=""), name="sample_by_answer_key"),
        ]

    def __str__(self) -> str:
        return f"row {self.index} of run {self.run_id}"
