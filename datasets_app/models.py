"""Uploaded datasets, their column mappings, their images, and the jobs that look at them before any GPU time."""

from pathlib import Path
from typing import ClassVar

from django.db import models

from ftproject.core.events import publish
from ftproject.core.jobs import Job
from ftproject.core.storage import datasets_dir


class Dataset(models.Model):
    """One uploaded table. Its rows lie in a Parquet file of text columns named by the sha256 of the upload."""

    filename = models.CharField(max_length=255)
    sha256 = models.CharField(max_length=64, unique=True)
    size_bytes = models.BigIntegerField()
    format = models.CharField(max_length=16)
    encoding = models.CharField(max_length=32, blank=True, default="")
    delimiter = models.CharField(max_length=4, blank=True, default="")
    num_rows = models.BigIntegerField()
    num_columns = models.IntegerField()
    columns = models.JSONField(default=list)
    is_current = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["is_current"], condition=models.Q(is_current=True), name="one_current_dataset"
            )
        ]

    def __str__(self) -> str:
        return f"{self.filename} ({self.num_rows} rows)"

    @property
    def table_path(self) -> Path:
        return datasets_dir() / f"{self.sha256}.parquet"


class ColumnMapping(models.Model):
    """What each column is for. Immutable: setting it again makes a new version, and a run keeps the one it ran with."""

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="mappings")
    version = models.PositiveIntegerField()
    prompt_column = models.CharField(max_length=1000)
    response_column = models.CharField(max_length=1000)
    ground_truth_column = models.CharField(max_length=1000, null=True, blank=True)
    image_url_columns = models.JSONField(default=list)
    image_separator = models.CharField(max_length=16, null=True, blank=True)
    mandatory_columns = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-version"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["dataset", "version"], name="mapping_version_once")]

    def __str__(self) -> str:
        return f"mapping {self.version} of {self.dataset}"


class PreflightRun(Job):
    """One look at every row before training; the state machine is `Job`'s with `working` as its work."""

    KIND: ClassVar[str] = "preflight"
    NEEDS_GPU: ClassVar[bool] = False

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="preflights")
    mapping = models.ForeignKey(ColumnMapping, on_delete=models.CASCADE, related_name="preflights")
    model_name = models.CharField(max_length=500)
    requested_config = models.JSONField(default=dict)
    config = models.JSONField(default=dict)
    # Equal for requests that would get the same report, as long as no image is fetched or fails in between.
    fingerprint = models.CharField(max_length=64, db_index=True)
    current_row = models.BigIntegerField(default=0)
    report = models.JSONField(null=True, blank=True)

    class Meta(Job.Meta):
        abstract = False

    def on_end(self) -> None:
        """Publishes preflight_complete or preflight_error."""
        if self.status == self.Status.ERROR:
            publish(
                "preflight_error",
                {"run_id": self.pk, "error": self.error or ""},
                run_kind=self.KIND,
                run_id=self.pk,
            )
            return
        report = self.report or {}
        publish(
            "preflight_complete",
            {
                "run_id": self.pk,
                "can_train": bool(report.get("can_train")),
                "usable": int(report.get("rows", {}).get("usable", 0)),
                "skipped": int(report.get("rows", {}).get("skipped", 0)),
            },
            run_kind=self.KIND,
            run_id=self.pk,
        )


class ImageArchiveEntry(models.Model):
    """Where a path of a dataset's uploaded image archive leads: to a file of the content-addressed cache.

    Looked up by hash, because a path may be longer than what a database indexes. `short_key` is the path without the
    archive's common top folder, empty when it has none.
    """

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="archive_entries")
    path = models.TextField()
    key = models.CharField(max_length=64)
    short_key = models.CharField(max_length=64, blank=True, default="")
    digest = models.CharField(max_length=64)

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["dataset", "key"], name="archive_path_once")]
        indexes: ClassVar = [models.Index(fields=["dataset", "short_key"], name="archive_short_path")]
        verbose_name_plural = "image archive entries"

    def __str__(self) -> str:
        return f"{self.path} of {self.dataset_id}"


class ImagePrefetch(Job):
    """Fetches every image of a dataset into the cache; the state machine is `Job`'s with `working` as its work."""

    KIND: ClassVar[str] = "prefetch"
    NEEDS_GPU: ClassVar[bool] = False

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="prefetches")
    mapping = models.ForeignKey(ColumnMapping, on_delete=models.CASCADE, related_name="prefetches")
    retry_failed = models.BooleanField(default=False)
    current = models.BigIntegerField(default=0)
    total = models.BigIntegerField(default=0)
    num_images = models.BigIntegerField(default=0)
    num_failed = models.BigIntegerField(default=0)

    class Meta(Job.Meta):
        abstract = False
        verbose_name_plural = "image prefetches"

    def on_end(self) -> None:
        """Publishes prefetch_complete or prefetch_error."""
        if self.status == self.Status.ERROR:
            publish(
                "prefetch_error",
                {"run_id": self.pk, "error": self.error or ""},
                run_kind=self.KIND,
                run_id=self.pk,
            )
            return
        publish(
            "prefetch_complete",
            {
                "run_id": self.pk,
                "dataset_id": self.dataset_id,
                "num_images": self.num_images,
                "num_failed": self.num_failed,
                "stopped_early": self.stopped_early,
            },
            run_kind=self.KIND,
            run_id=self.pk,
        )


class BadImage(models.Model):
    """One image cell that a prefetch could not turn into an image, with the dataset row and column it stands in."""

    run = models.ForeignKey(ImagePrefetch, on_delete=models.CASCADE, related_name="bad_images")
    index = models.BigIntegerField()
    column = models.CharField(max_length=1000)
    url = models.TextField()
    code = models.CharField(max_length=64)
    message = models.TextField()

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"row {self.index}, {self.column!r}: {self.code}"
