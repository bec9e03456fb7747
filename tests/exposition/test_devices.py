"""Devices are polled, and one that hangs or fails affects no other."""

from threading import Event, Thread

import pytest

from inferd.engine.device_status import DeviceMemory
from inferd.exposition.devices import DeviceCollector
from inferd.metrics import instruments
from inferd.metrics.instruments import Instrument
from tests.metrics.scraped import scraped

UP = "inferd_device_up"
USED = "inferd_device_memory_used_bytes"
TOTAL = "inferd_device_memory_bytes"


class Machine:
    """Devices that models run on, those that are there, their memory, what was asked, and the time."""

    def __init__(self, *devices: str) -> None:
        self.devices = list(devices)
        self.there = set(devices)
        self.memories: dict[str, DeviceMemory] = {}
        self.asked: list[str] = []
        self.now = 500.0
        self.collector = DeviceCollector(
            lambda: self.devices, self.present, self.memory, every=10.0, clock=lambda: self.now
        )

    def present(self, device: str) -> bool:
        self.asked.append(device)
        return device in self.there

    def memory(self, device: str) -> DeviceMemory | None:
        return self.memories.get(device)


@pytest.mark.parametrize(
    "instrument",
    [instruments.DEVICE_UP, instruments.DEVICE_MEMORY_USED, instruments.DEVICE_MEMORY],
    ids=lambda i: i.name,
)
def test_each_family_is_the_declared_one_and_there_from_the_start(instrument: Instrument) -> None:
    families = {family.name: family for family in Machine().collector.collect()}
    assert len(families) == 3
    assert (families[instrument.name].type, families[instrument.name].documentation) == ("gauge", instrument.help)
    assert list(families[instrument.name].samples) == []


def test_each_device_is_up_or_not() -> None:
    machine = Machine("CPU", "GPU.1", "CPU")
    machine.there.remove("GPU.1")
    assert scraped(machine.collector) == {(UP, "CPU"): 1, (UP, "GPU.1"): 0}


def test_memory_is_shown_by_kind_where_it_is_told() -> None:
    machine = Machine("CPU", "GPU", "NPU")
    machine.memories = {"GPU": DeviceMemory({"usm_device": 5, "cl_mem": 0}, 9), "NPU": DeviceMemory({"ddr": 3}, None)}
    found = scraped(machine.collector)
    # Labels by name: device, kind.
    assert {key: value for key, value in found.items() if key[0] != UP} == {
        (USED, "GPU", "cl_mem"): 0,
        (USED, "GPU", "usm_device"): 5,
        (USED, "NPU", "ddr"): 3,
        (TOTAL, "GPU"): 9,
    }


def test_what_a_compound_device_lists_shows_its_memory_once() -> None:
    machine = Machine("AUTO:GPU,CPU", "BATCH:GPU(4)", "GPU")
    machine.there.add("CPU")
    machine.memories = {"GPU": DeviceMemory({"usm_device": 5}, 9)}
    assert scraped(machine.collector) == {
        (UP, "AUTO:GPU,CPU"): 1,
        (UP, "BATCH:GPU(4)"): 1,
        (UP, "GPU"): 1,
        (USED, "GPU", "usm_device"): 5,
        (TOTAL, "GPU"): 9,
    }


def test_an_absent_device_is_not_asked_for_its_memory() -> None:
    machine = Machine("GPU")
    machine.there.clear()
    machine.memories = {"GPU": DeviceMemory({"usm_device": 5}, 9)}
    assert scraped(machine.collector) == {(UP, "GPU"): 0}


def test_answers_are_kept_for_a_while() -> None:
    machine = Machine("GPU")
    scraped(machine.collector)
    machine.there.clear()
    machine.now += 9.9
    assert scraped(machine.collector) == {(UP, "GPU"): 1}
    assert machine.asked == ["GPU"]
    machine.now += 0.1
    assert scraped(machine.collector) == {(UP, "GPU"): 0}
    assert machine.asked == ["GPU", "GPU"]


def test_a_device_that_is_new_is_asked_at_once_and_one_that_has_gone_is_forgotten() -> None:
    machine = Machine("CPU")
    scraped(machine.collector)
    machine.devices = ["GPU"]
    machine.there.add("GPU")
    assert scraped(machine.collector) == {(UP, "GPU"): 1}
    assert machine.asked == ["CPU", "GPU"]


def test_a_device_that_can_not_be_asked_is_absent() -> None:
    def present(device: str) -> bool:
        if device == "GPU":
            raise RuntimeError("CL_DEVICE_NOT_AVAILABLE")
        return True

    assert scraped(DeviceCollector(lambda: ["CPU", "GPU"], present, lambda _: None)) == {(UP, "CPU"): 1, (UP, "GPU"): 0}


def test_a_device_that_can_not_be_asked_for_memory_is_still_there() -> None:
    def memory(device: str) -> DeviceMemory | None:
        raise RuntimeError(device)

    assert scraped(DeviceCollector(lambda: ["GPU"], lambda _: True, memory)) == {(UP, "GPU"): 1}


def test_an_answer_counts_however_long_it_took() -> None:
    machine = Machine("GPU")

    def present(_: str) -> bool:
        machine.now += 60
        return True

    collector = DeviceCollector(lambda: ["GPU"], present, lambda _: None, every=10.0, clock=lambda: machine.now)
    assert scraped(collector) == {(UP, "GPU"): 1}


class Hanging(Machine):
    """A machine on which the second question and later ones wait until they may go on."""

    def __init__(self, *devices: str) -> None:
        super().__init__(*devices)
        self.waits, self.may_go_on = Event(), Event()

    def present(self, device: str) -> bool:
        if self.asked:
            self.waits.set()
            assert self.may_go_on.wait(30)
        return super().present(device)


def test_while_a_question_hangs_others_see_what_was_known_and_then_no_device() -> None:
    machine = Hanging("GPU")
    machine.memories = {"GPU": DeviceMemory({"usm_device": 5}, 9)}
    known = scraped(machine.collector)
    machine.now += 60
    held_up = Thread(target=scraped, args=(machine.collector,))
    held_up.start()
    assert machine.waits.wait(30)
    machine.now += 9.9
    assert scraped(machine.collector) == known
    machine.now += 0.1
    assert scraped(machine.collector) == {(UP, "GPU"): 0}
    machine.may_go_on.set()
    held_up.join(30)
    assert scraped(machine.collector) == known
    assert machine.asked == ["GPU", "GPU"]
