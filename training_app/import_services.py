"""Takes an adapter of other origin: unpacked, examined, published whole, and listed like one that was trained here."""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import IntegrityError, transaction

from ftproject.core.errors import ConflictError, InvalidInputError, Problem, ProductError, TooLargeError
from ftproject.core.storage import adapters_dir, models_dir
from ftproject.engine.adapter_import import AdapterFacts, find_adapter_folder, import_adapter, inspect_adapter
from ftproject.engine.adapters import AdapterError
from training_app.import_archive import unpacked_archive
from training_app.models import Adapter

# One plain folder everywhere; not hidden, not an option, no number (that would be an id), no route of ours.
ADAPTER_NAME = re.compile(r"(?![0-9]+\Z)(?!import\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TAKEN = frozenset({errno.ENOTEMPTY, errno.EEXIST})  # a folder appeared between the look and the rename
NAME_RULE = "use up to 128 letters, digits, '.', '_' and '-', the first one a letter or digit, and not a number alone"

TAKEN_NAME = "Give another one as `name`, or delete that adapter first."
UNLISTED = "Its folder is there without being listed: `manage.py doctor --fix` lists it. Or give another `name`."


@dataclass(frozen=True)
class ImportedAdapter:
    adapter: Adapter
    facts: AdapterFacts


def adapter_import(
    *, file: Path, filename: str = "", name: str | None = None, base_model_name: str | None = None
) -> ImportedAdapter:
    """The adapter in a zip, under `name`, its own folder's or the file's; a refused import leaves nothing.

    `base_model_name` says which base it belongs to where its config names a folder of another machine.
    """
    if name is not None:
        require_adapter_name(name)
    with unpacked_archive(file) as unpacked:
        try:
            folder = find_adapter_folder(unpacked)
            chosen = name or default_name(folder, unpacked, filename)
            require_adapter_name(chosen)
            facts = inspect_adapter(folder, models_dir=models_dir(), base_model_name=base_model_name)
            return publish(facts, chosen)
        except AdapterError as exc:
            raise refusal_of(exc) from exc


def upload_import(
    *, file: TemporaryUploadedFile, name: str | None = None, base_model_name: str | None = None
) -> ImportedAdapter:
    """The same of an uploaded file."""
    path = Path(file.temporary_file_path())
    return adapter_import(file=path, filename=file.name or "", name=name, base_model_name=base_model_name)


def default_name(folder: Path, unpacked: Path, filename: str) -> str:
    return Path(filename).stem if folder == unpacked else folder.name


def require_adapter_name(name: str) -> None:
    require_plain_name(name)
    if Adapter.objects.filter(name=name).exists():
        raise adapter_exists(name)
    if os.path.lexists(adapters_dir() / name):
        raise adapter_exists(name, hint=UNLISTED)


def require_plain_name(name: str) -> None:
    if not ADAPTER_NAME.fullmatch(name):
        problem = Problem(code="invalid_name", message=NAME_RULE, field="name")
        detail = f"{name[:200]!r} is no name of an adapter."
        raise InvalidInputError(detail, code="invalid_name", hint="Give one as `name`.", errors=[problem])


def adapter_exists(name: str, hint: str = TAKEN_NAME) -> ConflictError:
    return ConflictError(f"There is an adapter {name!r} already.", code="adapter_exists", hint=hint)


def publish(facts: AdapterFacts, name: str) -> ImportedAdapter:
    """Folder and row, both or neither."""
    target = adapters_dir() / name
    try:
        import_adapter(facts, target)
    except OSError as exc:
        if exc.errno in TAKEN:
            raise adapter_exists(name) from exc
        raise
    try:
        with transaction.atomic():
            adapter = Adapter.objects.create(
                name=name,
                base_model_name=facts.base_model_name,
                r=facts.r,
                size_bytes=sum(entry.stat().st_size for entry in target.iterdir()),
                sha256=facts.sha256,
                # Weights that are not zero may still change no answer; that is only known once it has answered.
                effective=None if facts.effective else False,
            )
    except BaseException as exc:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(exc, IntegrityError):  # the name was taken between the look and the row
            raise adapter_exists(name) from exc
        raise
    return ImportedAdapter(adapter, facts)


def refusal_of(exc: AdapterError) -> ProductError:
    detail = f"The adapter was refused: {exc.message}."
    if exc.code == "adapter_exists":
        return ConflictError(detail, code=exc.code, hint="Give another `name`.")
    kind = TooLargeError if exc.code == "adapter_too_large" else InvalidInputError
    hint = "A LoRA adapter of Qwen3-VL in PEFT's form is taken: adapter_config.json and adapter_model.safetensors."
    return kind(detail, code=exc.code, hint=hint)
