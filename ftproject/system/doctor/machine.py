"""Looks at what everything stands on: the folder and its disk, the secret key, packages, GPU and driver."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
from django.conf import settings
from django.db import connection

from ftproject.core.storage import WRITTEN_BESIDE
from ftproject.engine.gpu import gpu_stats, torch_has_cuda
from ftproject.system.doctor.findings import Finding, Level

FOLDERS = (*WRITTEN_BESIDE, "runs", "logs", "run", "tmp", "cache")
# SQLite's write-ahead log needs memory that processes share; these file systems do not give it reliably.
NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph"}
LITTLE_MB, TOO_LITTLE_MB = 2048, 64
# What decides results and safety; a development tool of another version harms nobody.
PACKAGES = ("django", "djangorestframework", "torch", "transformers", "trl", "peft", "safetensors", "pillow", "pyarrow")


def check_folders() -> Iterator[Finding]:
    devices: dict[int, str] = {}
    for name in ("", *FOLDERS):
        folder = Path(settings.DATA_DIR) / name
        if not folder.is_dir():
            continue
        devices.setdefault(folder.stat().st_dev, name or ".")
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"x")
        except OSError as error:
            remedy = f"Give the server's user the right to write there: chown -R {os.getuid()} {folder}"
            yield Finding("error", "not_writable", f"{folder} cannot be written to: {error.strerror}.", remedy)
    if len(devices) > 1:
        names = ", ".join(devices.values())
        remedy = (
            "Keep the data directory on one file system: checkpoints are handed on by links, free space is one figure."
        )
        yield Finding("warning", "several_disks", f"The folders lie on several file systems ({names}).", remedy)


def check_disk() -> Iterator[Finding]:
    free_mb = shutil.disk_usage(settings.DATA_DIR).free // 2**20
    if free_mb < LITTLE_MB:
        level: Level = "error" if free_mb < TOO_LITTLE_MB else "warning"
        remedy = "`manage.py prune` shows what can go; or move QWEN3VL_DATA_DIR to a larger disk."
        yield Finding(level, "little_disk", f"Only {free_mb:,} MB are free in {settings.DATA_DIR}.", remedy)
    kind = file_system_of(Path(settings.DATA_DIR))
    if kind in NETWORK_DISKS and connection.vendor == "sqlite":
        remedy = "Move the data directory to a local disk, or set QWEN3VL_DATABASE_URL to a PostgreSQL."
        yield Finding("warning", "network_disk", f"SQLite lies on a network file system ({kind}).", remedy)


def file_system_of(path: Path) -> str:
    mounts = {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    above = [str(folder) for folder in (path, *path.parents) if str(folder) in mounts]
    return mounts[above[0]] if above else ""


def check_secret() -> Iterator[Finding]:
    path = Path(settings.DATA_DIR) / "secret_key"
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        message = f"{path} can be read by others (mode {mode:o}): who has it can forge queue messages, which run code."
        yield Finding("error", "secret_readable", message, f"chmod 600 {path}", lambda: make_private(path))


def make_private(path: Path) -> str:
    path.chmod(0o600)
    return f"{path.name} has mode 600."


def check_packages() -> Iterator[Finding]:
    pinned = pinned_versions()
    for name in PACKAGES:
        wanted, there = pinned.get(name), version_of(name)
        if there is None:
            remedy = "Install the requirements: pip install -r requirements.txt"
            yield Finding("error", "package_missing", f"The package {name} is not installed.", remedy)
        elif wanted and there.partition("+")[0] != wanted.partition("+")[0]:
            remedy = f"Tested was {wanted}: pip install -r requirements.txt, or run the tests with yours."
            yield Finding("warning", "package_differs", f"{name} is {there}, not {wanted}.", remedy)


def pinned_versions() -> dict[str, str]:
    path = Path(settings.BASE_DIR) / "constraints.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_gpu() -> Iterator[Finding]:
    stats = gpu_stats()
    for device in stats["devices"]:
        yield Finding("info", "gpu", f"GPU {device['index']}: {device['device_name']}, {device['memory_total_mb']} MB.")
    if stats["available"] and not torch_has_cuda():
        remedy = "pip install -r requirements-gpu.txt: the installed torch is the one for CPUs."
        yield Finding("warning", "gpu_unused", "There is a GPU, but torch cannot use it.", remedy)
    if not stats["available"] and torch_has_cuda():
        remedy = "Look at `nvidia-smi`: no driver, or no device in this container."
        yield Finding("warning", "gpu_not_seen", "torch is built for CUDA, but the driver shows no GPU.", remedy)
