"""Facts about the GPU read through NVML, so that the web process knows them without torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ftproject.engine.device_rules import DeviceFacts

MIB = 1024 * 1024
NO_GPU: dict[str, Any] = {
    "available": False,
    "device_name": None,
    "memory_total_mb": None,
    "memory_used_mb": None,
    "memory_free_mb": None,
    "utilization_percent": None,
    "temperature_c": None,
    "power_w": None,
    "devices": [],
}


def gpu_stats() -> dict[str, Any]:
    """The state of every GPU, the first one's facts at the top; without one, `available` false and nulls.

    Never raises: a fact that the driver does not tell is null. Memory in MiB, temperature in degrees Celsius,
    power in watts.
    """
    devices = _read_devices(_device_stats)
    if not devices:
        return {**NO_GPU, "devices": []}
    first = {key: value for key, value in devices[0].items() if key != "index"}
    return {"available": True, **first, "devices": devices}


def device_facts() -> DeviceFacts:
    """What this machine can compute with, without importing torch; never raises.

    CUDA counts only where the driver shows a device, CUDA_VISIBLE_DEVICES does not hide it, and the installed
    torch was built for it: a CPU wheel beside a fine GPU computes on the CPU.
    """
    nothing = DeviceFacts(cuda=False, name=None, memory_total_mb=None, bf16=False)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1") or not torch_has_cuda():
        return nothing
    devices = _read_devices(_device_identity)
    first = int(visible) if visible.isdecimal() else 0  # a UUID is not looked up: GPUs of one machine are mostly alike
    return devices[first] if first < len(devices) else nothing


@cache
def torch_has_cuda() -> bool:
    """Whether the installed torch was built with CUDA, read once from its version file without importing it."""
    try:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return False
        text = (Path(spec.origin).parent / "version.py").read_text()
    except (OSError, ImportError, ValueError):
        return False
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE) is not None


def _read_devices(read: Callable[[Any, Any, int], Any]) -> list[Any]:
    """`read(nvml, handle, index)` for every device; empty when NVML cannot be loaded or fails."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, or a driver that does not match: all mean "no GPU" to us
        return []
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [read(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index), index) for index in range(count)]
    except Exception:  # the device may fall off the bus between two calls
        return []
    finally:
        _ask(pynvml.nvmlShutdown)


def _device_stats(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    utilization = _ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    power = _ask(nvml.nvmlDeviceGetPowerUsage, handle)
    return {
        "index": index,
        "device_name": _name(nvml, handle),
        "memory_total_mb": memory and memory.total // MIB,
        "memory_used_mb": memory and memory.used // MIB,
        "memory_free_mb": memory and memory.free // MIB,
        "utilization_percent": utilization and utilization.gpu,
        "temperature_c": _ask(nvml.nvmlDeviceGetTemperature, handle, 0),
        "power_w": None if power is None else power / 1000,
    }


def _device_identity(nvml: Any, handle: Any, _index: int) -> DeviceFacts:
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    major, _minor = _ask(nvml.nvmlDeviceGetCudaComputeCapability, handle) or (0, 0)
    return DeviceFacts(
        cuda=True,
        name=_name(nvml, handle),
        memory_total_mb=memory and memory.total // MIB,
        bf16=major >= 8,  # Ampere is the first generation with bfloat16
    )


def _name(nvml: Any, handle: Any) -> str | None:
    name = _ask(nvml.nvmlDeviceGetName, handle)
    return name.decode() if isinstance(name, bytes) else name


def _ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """The driver's answer, or None where this device or driver does not give it."""
    try:
        return call(*arguments)
    except Exception:  # NVMLError_NotSupported and its 20 kin
        return None
