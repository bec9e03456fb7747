"""Devices are present while OpenVINO finds them, and report the memory figures that they have."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.device_status import DeviceMemory, DeviceStatus
from inferd.engine.runtime import ov

# As the GPU's documentation lists them.
STATISTICS = {"unknown": 0, "cl_mem": 4096, "usm_host": 1024, "usm_shared": 0, "usm_device": 1 << 30}
GPU = {"GPU_MEMORY_STATISTICS": STATISTICS, "GPU_DEVICE_TOTAL_MEM_SIZE": 8 << 30}
NPU = {"NPU_DEVICE_ALLOC_MEM_SIZE": 1 << 20, "NPU_DEVICE_TOTAL_MEM_SIZE": 1 << 32}


class FakeCore:
    """A core with devices that were only read about; what is common to all cores is held against the real one."""

    def __init__(self, told: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.told = {"CPU": {}, "GPU.0": GPU, "GPU.1": {}, "NPU": NPU} if told is None else told

    @property
    def available_devices(self) -> list[str]:
        return list(self.told)

    def get_property(self, device: str, name: str) -> Any:
        if name not in self.told.get(device, {}):
            raise RuntimeError(f"Cannot get unsupported property: {name}")
        return self.told[device][name]


class BrokenCore:
    """A core that can't even list its devices."""

    @property
    def available_devices(self) -> list[str]:
        raise RuntimeError("Cannot load library")

    def get_property(self, _device: str, _name: str) -> Any:
        raise TypeError("Failed to convert parameter to Python representation!")


@pytest.mark.parametrize("core", [ov.Core(), FakeCore()], ids=["real", "fake"])
def test_what_is_relied_on_holds_for_the_real_core_too(core: Any) -> None:
    assert "CPU" in core.available_devices
    for device, name in (("CPU", "GPU_MEMORY_STATISTICS"), ("CPU", "NOSUCH"), ("GPU.7", "GPU_DEVICE_TOTAL_MEM_SIZE")):
        with pytest.raises(RuntimeError):
            core.get_property(device, name)


@pytest.mark.parametrize(
    ("device", "there"),
    [("CPU", True), ("AUTO", True), ("AUTO:GPU.7,CPU", True), ("GPU.7", False), ("HETERO:GPU.7,CPU", False)],
)
def test_on_the_real_core_a_device_is_there_or_not(device: str, there: bool) -> None:
    assert DeviceStatus(ov.Core()).present(device) is there


@pytest.mark.parametrize(
    ("device", "there"),
    [("GPU", True), ("GPU.1", True), ("NPU", True), ("GPU.2", False), ("MULTI:GPU.2", False), ("BATCH:GPU.1(4)", True)],
)
def test_devices_with_drivers_are_there_while_they_are_listed(device: str, there: bool) -> None:
    assert DeviceStatus(FakeCore()).present(device) is there


def test_a_device_that_goes_away_is_no_longer_there() -> None:
    core = FakeCore()
    status = DeviceStatus(core)
    assert status.present("AUTO:NPU,GPU")
    core.told = {"CPU": {}}
    assert not status.present("AUTO:NPU,GPU")
    assert status.memory("NPU") is None


def test_where_nothing_can_be_listed_nothing_is_there() -> None:
    assert not DeviceStatus(BrokenCore()).present("CPU")


def test_a_gpu_tells_what_it_uses_by_kind_and_what_it_has() -> None:
    assert DeviceStatus(FakeCore()).memory("GPU.0") == DeviceMemory(STATISTICS, 8 << 30)


def test_an_npu_has_one_kind_of_memory() -> None:
    assert DeviceStatus(FakeCore()).memory("NPU") == DeviceMemory({"ddr": 1 << 20}, 1 << 32)


@pytest.mark.parametrize("device", ["GPU.1", "GPU.7", "CPU", "AUTO", "AUTO:GPU.0,CPU", "BATCH:GPU.0(4)"])
def test_what_tells_nothing_has_no_memory(device: str) -> None:
    assert DeviceStatus(FakeCore()).memory(device) is None


def test_the_real_cpu_tells_nothing() -> None:
    assert DeviceStatus(ov.Core()).memory("CPU") is None


@pytest.mark.parametrize(
    ("told", "memory"),
    [
        ({"GPU_MEMORY_STATISTICS": STATISTICS}, DeviceMemory(STATISTICS, None)),
        ({"GPU_MEMORY_STATISTICS": {}}, None),
        ({"GPU_DEVICE_TOTAL_MEM_SIZE": "10240"}, DeviceMemory({}, 10240)),
        ({"GPU_MEMORY_STATISTICS": "usm_device: 1"}, None),
    ],
    ids=str,
)
def test_half_an_answer_is_taken_for_half(told: dict[str, Any], memory: DeviceMemory | None) -> None:
    assert DeviceStatus(FakeCore({"GPU": told})).memory("GPU") == memory


ANYTHING = st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.lists(st.integers()))


@given(device=st.sampled_from(["GPU", "NPU"]), used=ANYTHING | st.dictionaries(st.text(), ANYTHING), total=ANYTHING)
def test_whatever_a_driver_says_bytes_come_out(device: str, used: Any, total: Any) -> None:
    names = ("GPU_MEMORY_STATISTICS", "GPU_DEVICE_TOTAL_MEM_SIZE", *NPU)
    memory = DeviceStatus(FakeCore({device: dict(zip(names, (used, total) * 2, strict=True))})).memory(device)
    if memory is not None:
        assert all(isinstance(number, int) and number >= 0 for number in memory.used.values())
        assert memory.total is None or memory.total >= 0


def test_an_answer_that_python_can_not_take_is_none() -> None:
    assert DeviceStatus(BrokenCore()).memory("GPU") is None
