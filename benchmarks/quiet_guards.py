"""Lifts what refuses an operation before it begins for lack of space, so that the lack can be met in the middle."""

import shutil
from types import SimpleNamespace
from typing import Any

PLENTY = 2**40


def lift() -> None:
    from datasets_app import archives, uploads
    from datasets_app.ingestion import table
    from ftproject.engine import merging
    from training_app import disk, import_archive, merge_services

    table.FREE_RESERVE = uploads.FREE_RESERVE = 0  # type: ignore[attr-defined]  # uploads imports it
    for module in (archives, uploads, table, disk, import_archive, merge_services, merging):
        vars(module)["shutil"] = RoomyShutil()


class RoomyShutil:
    """shutil, except that every disk has room."""

    def disk_usage(self, _: Any) -> Any:
        return SimpleNamespace(free=PLENTY, total=PLENTY, used=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(shutil, name)
