"""GPU facts through NVML: complete with a device, nulls without one, and never an exception."""

# ruff: noqa: N802 - the stand-in carries NVML's own names

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ftproject.engine import gpu
from ftproject.engine.configs import DeviceFacts

FIELDS = {
    "available",
    "device_name",
    "memory_total_mb",
    "memory_used_mb",
    "memory_free_mb",
    "utilization_percent",
    "temperature_c",
    "power_w",
    "devices",
}
MIB = 2**20


class FakeNvml:
    """The few calls of pynvml that are made, with two devices; `missing` ones raise as drivers do."""

    def __init__(self, count: int = 2, missing: tuple[str, ...] = (), capability: tuple[int, int] = (9, 0)) -> None:
        self.count, self.missing, self.capability = count, missing, capability
        self.open = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "missing"):

            def refuse(*_: object) -> None:
                raise RuntimeError("NVMLError_NotSupported")

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return f"NVIDIA Test {handle}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=100 * MIB, used=30 * MIB, free=70 * MIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=42)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 250_500

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.capability


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_a_machine_without_a_gpu_says_so_with_nulls(nvml: FakeNvml) -> None:
    nvml.count = 0
    stats = gpu.gpu_stats()
    assert set(stats) == FIELDS
    assert stats["available"] is False
    assert stats["devices"] == []
    assert {stats[name] for name in FIELDS - {"available", "devices"}} == {None}


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_failing_driver_means_no_gpu_and_no_exception(nvml: FakeNvml, call: str) -> None:
    nvml.missing = (call,)
    assert gpu.gpu_stats()["available"] is False
    assert gpu.device_facts() == DeviceFacts(False, None, None, False)
    assert nvml.open == 0


def test_the_first_device_stands_at_the_top_and_all_of_them_in_the_list(nvml: FakeNvml) -> None:
    stats = gpu.gpu_stats()
    assert set(stats) == FIELDS
    assert stats["available"] is True
    assert stats["device_name"] == "NVIDIA Test 0"
    assert (stats["memory_total_mb"], stats["memory_used_mb"], stats["memory_free_mb"]) == (100, 30, 70)
    assert (stats["utilization_percent"], stats["temperature_c"], stats["power_w"]) == (42, 61, 250.5)
    assert [device["index"] for device in stats["devices"]] == [0, 1]
    assert nvml.open == 0


def test_a_fact_that_the_device_does_not_tell_is_null(nvml: FakeNvml) -> None:
    nvml.missing = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo")
    stats = gpu.gpu_stats()
    assert stats["available"] is True
    assert (stats["power_w"], stats["utilization_percent"], stats["memory_total_mb"]) == (None, None, None)
    assert stats["temperature_c"] == 61


@pytest.mark.parametrize(("capability", "bf16"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_bfloat16_begins_with_ampere(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], bf16: bool
) -> None:
    monkeypatch.setattr(gpu, "torch_has_cuda", lambda: True)
    nvml.capability = capability
    assert gpu.device_facts() == DeviceFacts(True, "NVIDIA Test 0", 100, bf16)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_and_a_cpu_build_of_torch_do_not_count(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setattr(gpu, "torch_has_cuda", lambda: False)
    assert gpu.device_facts().cuda is False
    monkeypatch.setattr(gpu, "torch_has_cuda", lambda: True)
    assert gpu.device_facts().cuda is True
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert gpu.device_facts().cuda is False


@pytest.mark.parametrize(("visible", "name"), [("1,0", "NVIDIA Test 1"), ("GPU-4f2a", "NVIDIA Test 0"), ("7", None)])
def test_the_facts_are_those_of_the_first_visible_device(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, name: str | None
) -> None:
    monkeypatch.setattr(gpu, "torch_has_cuda", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.device_facts().name == name


@pytest.fixture
def build_forgotten() -> Iterator[None]:
    """What is found out about the installed torch holds for one process; nothing of this test stays."""
    yield
    gpu.torch_has_cuda.cache_clear()


@pytest.mark.usefixtures("build_forgotten")
def test_the_build_of_torch_is_read_without_importing_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise RuntimeError('imported')")
    version = torch / "version.py"
    spec = SimpleNamespace(origin=str(torch / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    version.write_text("cuda: Optional[str] = None\n")
    gpu.torch_has_cuda.cache_clear()
    assert gpu.torch_has_cuda() is False
    version.write_text("cuda: Optional[str] = '12.8'\n")
    gpu.torch_has_cuda.cache_clear()
    assert gpu.torch_has_cuda() is True
    version.unlink()
    gpu.torch_has_cuda.cache_clear()
    assert gpu.torch_has_cuda() is False
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gpu.torch_has_cuda.cache_clear()
    assert gpu.torch_has_cuda() is False
