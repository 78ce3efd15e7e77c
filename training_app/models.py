"""Training runs, what they logged, and the adapters they made."""

from pathlib import Path
from typing import ClassVar

from django.db import models
from django.utils import timezone

from datasets_app.models import ColumnMapping, Dataset
from ftproject.core.events import MergeStatusEvent, publish
from ftproject.core.jobs import Job
from ftproject.core.storage import adapters_dir, models_dir


class TrainingRun(Job):
    """One fine-tuning run; the state machine is `Job`'s with `training` as its work."""

    KIND: ClassVar[str] = "training"

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="training_runs")
    mapping = models.ForeignKey(ColumnMapping, on_delete=models.PROTECT, related_name="training_runs")
    model_name = models.CharField(max_length=500)
    device = models.CharField(max_length=200, blank=True, default="")
    backend = models.CharField(max_length=32, blank=True, default="")
    requested_config = models.JSONField(default=dict)
    config = models.JSONField(default=dict)
    # The run whose checkpoint this one goes on from; kept, so that its checkpoint is there until this one has its own.
    resumed_from = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="continuations"
    )
    resumed_step = models.IntegerField(null=True, blank=True)
    # Row numbers as ranges ("0-4,7"), written when the rows are prepared; the adapter's provenance carries a copy.
    trained_rows = models.TextField(blank=True, default="")
    heldout_rows = models.TextField(blank=True, default="")
    # What those rows hold, image contents included: a continuation on other rows would not be the same run.
    rows_sha256 = models.CharField(max_length=64, blank=True, default="")
    # Of the packages that decide a result, written by the run process itself.
    versions = models.JSONField(default=dict, blank=True)
    num_train_rows = models.IntegerField(null=True, blank=True)
    num_heldout_rows = models.IntegerField(null=True, blank=True)
    num_skipped_rows = models.IntegerField(null=True, blank=True)
    current_step = models.IntegerField(default=0)
    total_steps = models.IntegerField(null=True, blank=True)
    epoch = models.FloatField(null=True, blank=True)
    loss = models.FloatField(null=True, blank=True)
    learning_rate = models.FloatField(null=True, blank=True)
    grad_norm = models.FloatField(null=True, blank=True)
    eval_loss = models.FloatField(null=True, blank=True)
    eval_exact_match = models.FloatField(null=True, blank=True)
    eval_token_f1 = models.FloatField(null=True, blank=True)
    best_step = models.IntegerField(null=True, blank=True)
    eta_seconds = models.FloatField(null=True, blank=True)
    metrics = models.JSONField(default=dict, blank=True)

    class Meta(Job.Meta):
        abstract = False

    def on_end(self) -> None:
        """Publishes the last training_status, then training_complete or training_error."""
        publish(
            "training_status",
            {"run_id": self.pk, "status": str(self.status), "message": self.message},
            run_kind=self.KIND,
            run_id=self.pk,
        )
        if self.status == self.Status.ERROR:
            publish(
                "training_error",
                {"run_id": self.pk, "error": self.error or ""},
                run_kind=self.KIND,
                run_id=self.pk,
            )
            return
        adapter = Adapter.objects.filter(run=self).first()
        publish(
            "training_complete",
            {
                "run_id": self.pk,
                "metrics": self.metrics,
                "adapter_path": str(adapter.path) if adapter else None,
                "adapter": adapter.name if adapter else None,
                "stopped_early": self.stopped_early,
            },
            run_kind=self.KIND,
            run_id=self.pk,
        )


class TrainingMetric(models.Model):
    """One logged step of a run."""

    run = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="logged")
    step = models.IntegerField()
    epoch = models.FloatField(null=True, blank=True)
    loss = models.FloatField(null=True, blank=True)
    learning_rate = models.FloatField(null=True, blank=True)
    grad_norm = models.FloatField(null=True, blank=True)
    eval_loss = models.FloatField(null=True, blank=True)
    eval_exact_match = models.FloatField(null=True, blank=True)
    eval_token_f1 = models.FloatField(null=True, blank=True)
    # Not auto_now_add: the steps that a continuation takes over keep their times.
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["step", "id"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["run", "step"], name="one_metric_per_step")]

    def __str__(self) -> str:
        return f"step {self.step} of run {self.run_id}"


class Adapter(models.Model):
    """A LoRA adapter in the adapters folder; the row exists only after its folder was published whole."""

    name = models.CharField(max_length=128, unique=True)
    run = models.OneToOneField(TrainingRun, on_delete=models.PROTECT, null=True, blank=True, related_name="adapter")
    base_model_name = models.CharField(max_length=500)
    r = models.IntegerField()
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    # None: not measured. False: the adapter changes nothing, so no answer of it may be called fine-tuned.
    effective = models.BooleanField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["created_at", "id"]

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return adapters_dir() / self.name


class AdapterMerge(Job):
    """One merge of an adapter into its base: a complete 16-bit model folder; `Job`'s machine with `working`."""

    KIND: ClassVar[str] = "merge"

    # The merged model stands by itself, so its adapter may go; the name stays.
    adapter = models.ForeignKey(Adapter, on_delete=models.SET_NULL, null=True, blank=True, related_name="merges")
    adapter_name = models.CharField(max_length=128)
    base_model_name = models.CharField(max_length=500)
    model_name = models.CharField(max_length=200)
    current = models.IntegerField(default=0)
    total = models.IntegerField(null=True, blank=True)
    result = models.JSONField(default=dict, blank=True)

    class Meta(Job.Meta):
        abstract = False

    @property
    def path(self) -> Path:
        return models_dir() / self.model_name

    def on_end(self) -> None:
        """Publishes the last merge_status."""
        self.publish_status()

    def publish_status(self) -> None:
        data: MergeStatusEvent = {
            "run_id": self.pk,
            "status": str(self.status),
            "message": self.message,
            "adapter": self.adapter_name,
            "model_name": self.model_name,
            "current": self.current,
            "total": self.total,
            "error": self.error,
        }
        publish("merge_status", data, run_kind=self.KIND, run_id=self.pk)
