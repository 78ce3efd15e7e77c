"""What answers depend on beside the question: the model's files, and the versions of what computes."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

# What a loader reads; a README beside it changes no answer.
READ_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
COMPUTING_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "pillow",
    "torchvision",
    "accelerate",
    "bitsandbytes",
    "unsloth",
    "unsloth_zoo",
)


def fingerprint_model(path: str, cache: Path) -> str:
    """Identifies the files of a base model: "sha256:<digest>" of a folder, "revision:<commit>" of a hub model.

    A folder's files are hashed once and remembered in `cache` (JSON) by size and time of change: 16 GB take half a
    minute. Raises ModelError for a hub model that is neither here nor reachable.
    """
    if not os.path.isdir(path):
        return f"revision:{hub_revision(path)}"
    folder = Path(path)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(READ_SUFFIXES))
    known = _read_cache(cache)
    digests = {name: _file_digest(folder / name, known) for name in names}
    _write_cache(cache, known)
    return f"sha256:{hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()}"


def hub_revision(name: str) -> str:
    """The commit of a hub model that a load takes now; asks the hub, else takes what is in its cache."""
    from huggingface_hub import hf_hub_download

    from ftproject.engine.models import ModelError

    try:
        file = hf_hub_download(name, "config.json")  # nosec B615 # as in models.model_facts
    except Exception as error:  # as in models.model_facts
        raise ModelError("model_not_reachable", f"{name} cannot be fetched: {error}") from error
    return Path(file).parent.name


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that compute answers; nothing is imported."""
    found = {}
    for name in COMPUTING_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _file_digest(file: Path, known: dict[str, Any]) -> str:
    facts = file.stat()
    stamp = [facts.st_size, facts.st_mtime_ns]
    entry = known.get(str(file.resolve()))
    if isinstance(entry, dict) and entry.get("stamp") == stamp:
        return str(entry["sha256"])
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    known[str(file.resolve())] = {"stamp": stamp, "sha256": digest}
    return digest


def _read_cache(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, Any]) -> None:
    kept = {name: entry for name, entry in known.items() if os.path.exists(name)}
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    partial.write_text(json.dumps(kept))
    partial.replace(cache)
