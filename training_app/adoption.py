"""Lists an adapter folder that has no row: its process died between the two, or its row could not be written."""

from pathlib import Path
from typing import Any

from django.db import IntegrityError, transaction

from ftproject.core.errors import ConflictError
from ftproject.core.storage import adapters_dir, models_dir
from ftproject.engine.adapter_import import AdapterFacts, inspect_adapter
from ftproject.engine.adapters import AdapterError, read_adapter_info
from training_app.import_services import adapter_exists, refusal_of, require_plain_name
from training_app.models import Adapter, TrainingRun


def adapter_adopt(*, name: str) -> Adapter:
    """The row of a folder that is whole and safe, examined as an import is; refuses any other."""
    require_plain_name(name)
    folder = adapters_dir() / name
    if not folder.is_dir() or folder.is_symlink():
        raise ConflictError(f"{name} is no folder of an adapter.", code="adapter_not_found", hint="Look at its files.")
    try:
        facts = inspect_adapter(folder, models_dir=models_dir())
        provenance = read_adapter_info(folder).provenance
    except AdapterError as exc:
        raise refusal_of(exc) from exc
    return list_folder(folder, facts, provenance)


def list_folder(folder: Path, facts: AdapterFacts, provenance: dict[str, Any]) -> Adapter:
    trained = "run_id" in provenance
    effective = provenance.get("adapter_effective") if trained else None
    try:
        with transaction.atomic():
            return Adapter.objects.create(
                name=folder.name,
                run=run_that_made_it(provenance) if trained else None,
                base_model_name=facts.base_model_name,
                r=facts.r,
                size_bytes=sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file()),
                sha256=facts.sha256,
                effective=effective if facts.effective else False,
            )
    except IntegrityError as exc:
        raise adapter_exists(folder.name) from exc


def run_that_made_it(provenance: dict[str, Any]) -> TrainingRun | None:
    """The ended run of that number, on that dataset, without an adapter; a number alone may be another database's."""
    dataset = provenance.get("dataset")
    digest = dataset.get("sha256") if isinstance(dataset, dict) else None
    ended = TrainingRun.objects.filter(status__in=TrainingRun.TERMINAL, adapter=None, dataset__sha256=digest)
    number = provenance["run_id"]
    return ended.filter(pk=number).first() if isinstance(number, int) and digest else None
