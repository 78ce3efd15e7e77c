"""Writes of datasets and mappings: upload, import, activate, delete, map."""

import errno
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import ProtectedError

from datasets_app.ingestion.ingest import TableFacts
from datasets_app.ingestion.isolation import ingest_apart
from datasets_app.ingestion.survey import Survey, survey_file
from datasets_app.mapping_rules import checked_mapping
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import current_mapping
from ftproject.core.errors import ConflictError, InvalidInputError, UnavailableError
from ftproject.core.jobs import Job
from ftproject.core.storage import datasets_dir, publish_file

ATTEMPTS = 5


def dataset_upload(*, file: TemporaryUploadedFile, filename: str) -> Dataset:
    """Stores an uploaded file, already on disk, and makes it current."""
    return _take_file(Path(file.temporary_file_path()), filename)


def dataset_import(*, path: Path) -> Dataset:
    """Stores a file of this machine and makes it current."""
    if not path.is_file():
        raise InvalidInputError(f"There is no file {path}.", code="file_not_found", hint="Check the path.")
    return _take_file(path, path.name)


def dataset_activate(*, dataset: Dataset) -> Dataset:
    """Makes it the one that routes without a dataset_id speak of."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction.atomic():
                _make_current(dataset.pk)
            break
        except IntegrityError:  # two at once: on PostgreSQL neither sees the other's row until its commit
            if attempt == ATTEMPTS:
                raise
    dataset.refresh_from_db()
    return dataset


def dataset_delete(*, dataset: Dataset) -> int:
    """Deletes a dataset with its mappings and rows; 409 while a run refers to it."""
    dataset_id, path = dataset.pk, dataset.table_path
    _refuse_while_read(dataset)
    try:
        dataset.delete()
    except ProtectedError as exc:
        runs = ", ".join(sorted(f"{run._meta.verbose_name} {run.pk}" for run in exc.protected_objects)[:5])
        raise ConflictError(
            f"Dataset {dataset_id} is used by {runs}.", code="dataset_in_use", hint="Delete these runs first."
        ) from None
    with transaction.atomic():  # the same file may have been uploaded again in between
        if not Dataset.objects.filter(sha256=path.stem).exists():
            path.unlink(missing_ok=True)
    return int(dataset_id)


def _refuse_while_read(dataset: Dataset) -> None:
    """Finished prefetch and preflight runs go with their dataset; one that waits or runs keeps it."""
    for runs in (dataset.prefetches, dataset.preflights):
        run = runs.exclude(status__in=Job.TERMINAL).first()
        if run is not None:
            raise ConflictError(
                f"Dataset {dataset.pk} is used by {run._meta.verbose_name} {run.pk}.",
                code="dataset_in_use",
                hint="Stop it, or wait until it has ended.",
            )


def mapping_set(*, dataset: Dataset, **fields: Any) -> ColumnMapping:
    """Saves a new version of the mapping; the newest version is given back when it says the same already."""
    wanted = checked_mapping(list(dataset.columns), fields)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction.atomic():
                return _next_version(dataset, wanted)
        except IntegrityError:  # another request took this version number
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _next_version(dataset: Dataset, wanted: dict[str, Any]) -> ColumnMapping:
    newest = current_mapping(dataset=dataset)
    if newest and all(getattr(newest, name) == value for name, value in wanted.items()):
        return newest
    return ColumnMapping.objects.create(dataset=dataset, version=newest.version + 1 if newest else 1, **wanted)


def _take_file(path: Path, filename: str) -> Dataset:
    try:
        survey = survey_file(path)
        known = Dataset.objects.filter(sha256=survey.sha256).first()
        if known and known.table_path.exists():
            return _renamed(dataset_activate(dataset=known), filename)
        return _store(path, survey, filename)
    except OSError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        detail = "The disk is full; the current dataset is as it was."
        raise UnavailableError(detail, code="disk_full", hint="Free space in the data directory.") from None


def _store(path: Path, survey: Survey, filename: str) -> Dataset:
    target = datasets_dir() / f"{survey.sha256}.parquet"
    with publish_file(target) as partial:
        facts = ingest_apart(path, survey, filename, partial)
    try:
        with transaction.atomic():
            return dataset_activate(dataset=_row_of(survey, filename, facts))
    except DatabaseError:
        # A table without its row is found by nobody; one whose row is there is another upload's of the same content.
        if not Dataset.objects.filter(sha256=survey.sha256).exists():
            target.unlink(missing_ok=True)
        raise


def _row_of(survey: Survey, filename: str, facts: TableFacts) -> Dataset:
    """The one row of this content: a second upload at the same time, or one whose rows were lost, finds it."""
    columns = {
        "filename": _label(filename),
        "size_bytes": survey.size_bytes,
        "num_columns": len(facts.columns),
        **asdict(facts),
    }
    dataset, _ = Dataset.objects.update_or_create(sha256=survey.sha256, defaults=columns)
    if not dataset.table_path.exists():
        raise ConflictError("The same file was just deleted.", code="dataset_deleted", hint="Upload it again.")
    return dataset


def _make_current(dataset_id: int) -> None:
    Dataset.objects.filter(is_current=True).exclude(pk=dataset_id).update(is_current=False)
    if not Dataset.objects.filter(pk=dataset_id).update(is_current=True):
        raise ConflictError("The dataset was just deleted.", code="dataset_deleted", hint="Upload it again.")


def _renamed(dataset: Dataset, filename: str) -> Dataset:
    """The name is a label: the newest upload of the same content gives it."""
    dataset.filename = _label(filename)
    dataset.save(update_fields=["filename"])
    return dataset


def _label(filename: str) -> str:
    """The client's name without folders; it never becomes a path."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "").strip()
    return name[-255:] or "dataset"
