"""Looks at what rows promise: adapters that load, tables with all their rows, models and images that are there."""

from collections.abc import Iterator
from functools import partial

from datasets_app.image_cache import image_path
from datasets_app.ingestion import table
from datasets_app.models import Dataset, ImageArchiveEntry
from ftproject.core.jobs import Job
from ftproject.core.storage import models_dir
from ftproject.engine.adapters import WEIGHTS_FILE, read_adapter_info
from ftproject.engine.backends.base import EngineError
from ftproject.engine.device_rules import DeviceFacts, resolve_model
from ftproject.engine.fields import ConfigError
from ftproject.engine.tensor_files import TensorFileError, tensor_entries
from ftproject.system.doctor.findings import Finding
from training_app.adapter_services import file_sha256, hidden_folder_of, undo_deletion
from training_app.models import Adapter, AdapterMerge

FROM_BACKUP = "Take the folder from a backup"
ANY_DEVICE = DeviceFacts(cuda=True, name=None, memory_total_mb=None, bf16=True)


def check_adapters() -> Iterator[Finding]:
    for adapter in Adapter.objects.order_by("pk"):
        yield from check_adapter(adapter)


def check_adapter(adapter: Adapter) -> Iterator[Finding]:
    delete = f"`manage.py adapters delete {adapter.name}`"
    if not adapter.path.is_dir():
        if hidden_folder_of(adapter) is not None:
            message = f"The adapter {adapter.name} was about to be deleted when its process died."
            fix = partial(undo_deletion, adapter)
            yield Finding("error", "adapter_hidden", message, "Its folder can be put back, and deleted again.", fix)
            return
        message = f"The folder of the adapter {adapter.name} is gone."
        yield Finding("error", "adapter_missing", message, f"{FROM_BACKUP}, or take it off the list: {delete}")
        return
    try:
        read_adapter_info(adapter.path)
        tensor_entries(adapter.path / WEIGHTS_FILE)
        changed = file_sha256(adapter.path / WEIGHTS_FILE) != adapter.sha256
    except (EngineError, TensorFileError, OSError) as error:
        message = f"The adapter {adapter.name} cannot be loaded: {error}."
        yield Finding("error", "adapter_unreadable", message, f"{FROM_BACKUP}, or delete it: {delete}")
        return
    if changed:
        message = f"The weights of the adapter {adapter.name} are not those that were saved (sha256 differs)."
        yield Finding("error", "adapter_changed", message, f"{FROM_BACKUP}, or delete it: {delete}")
    try:
        resolve_model(adapter.base_model_name, ANY_DEVICE, models_dir=models_dir())
    except ConfigError:
        message = f"The base of the adapter {adapter.name}, {adapter.base_model_name}, is not here."
        remedy = f"Put its folder back below {models_dir()}."
        yield Finding("error", "base_missing", message, remedy)


def check_datasets() -> Iterator[Finding]:
    for dataset in Dataset.objects.order_by("pk"):
        problem = problem_of_table(dataset)
        if problem:
            message = f"The rows of dataset {dataset.pk} ({dataset.filename}) {problem}."
            remedy = "Upload the same file again: it takes its old place. Or take its Parquet file from a backup."
            yield Finding("error", "table_broken", message, remedy)


def problem_of_table(dataset: Dataset) -> str | None:
    """Every row is read: a block that is damaged shows only then."""
    try:
        layout = table.layout_of(dataset.table_path)
        if layout.num_rows != dataset.num_rows:
            return f"are {layout.num_rows:,}, not {dataset.num_rows:,}"
        last = -1
        for last, row in table.iter_rows(dataset.table_path, dataset.num_rows):
            if last == 0 and list(row) != list(dataset.columns):
                return "have other columns than were uploaded"
        return None if last + 1 == dataset.num_rows else f"end after {last + 1:,}"
    except FileNotFoundError:
        return "are gone"
    except (OSError, ValueError) as error:  # Arrow's errors are both
        return f"cannot be read: {error}"


def check_archive_images() -> Iterator[Finding]:
    digests = ImageArchiveEntry.objects.order_by().values_list("digest", flat=True).distinct()
    missing = sum(not image_path(digest).exists() for digest in digests.iterator())
    if missing:
        remedy = "Upload the image archives of the datasets again, or take `images/` from a backup."
        yield Finding("error", "images_missing", f"{missing:,} images of uploaded archives are gone.", remedy)


def check_merged_models() -> Iterator[Finding]:
    for merge in AdapterMerge.objects.filter(status=Job.Status.COMPLETED).order_by("pk"):
        if not merge.path.is_dir():
            message = f"The model {merge.model_name} that merge {merge.pk} made is gone."
            remedy = f"Merge again, take it from a backup, or delete the merge: DELETE /api/training/merges/{merge.pk}"
            yield Finding("warning", "model_missing", message, remedy)
