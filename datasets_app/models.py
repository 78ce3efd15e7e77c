"""Uploaded datasets and their column mappings."""

from pathlib import Path
from typing import ClassVar

from django.db import models

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
