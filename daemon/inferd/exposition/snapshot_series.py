"""The current snapshot as series: each instrument that names a field of the snapshot shows it."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.lifecycle import ModelState
from inferd.metrics import instruments
from inferd.metrics.families import counter, gauge, info
from inferd.metrics.instruments import SnapshotField
from inferd.metrics.snapshot import DeviceSnapshot, ServerSnapshot, VersionSnapshot

# Records of one kind, each with the values of its labels.
_Labelled = Iterable[tuple[tuple[str, ...], object]]

_READING = tuple((one, one.field) for one in instruments.ALL if one.field is not None)


class SnapshotCollector(Collector):
    """Reads a snapshot at each scrape."""

    def __init__(self, read: Callable[[], ServerSnapshot]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        server = self._read()
        answering = [version for version in server.versions if version.answers]
        devices = [((*version.key, device.device), device) for version in answering for device in version.devices]
        records: Mapping[type, _Labelled] = {
            ServerSnapshot: [((), server)],
            VersionSnapshot: [(version.key, version) for version in answering],
            DeviceSnapshot: devices,
        }
        for instrument, field in _READING:
            family = counter if instrument.kind == "counter" else gauge
            yield family(instrument, _samples(field, records[field.of]))
        desired = [version for version in server.versions if version.desired]
        ready = ModelState.READY.value
        yield gauge(instruments.MODEL_READY, ((version.key, version.state == ready) for version in desired))
        states = (((*one.key, state.value), one.state == state.value) for one in desired for state in ModelState)
        yield gauge(instruments.MODEL_STATE, states)
        yield gauge(instruments.MODEL_UNHEALTHY, (((*of, reason), 1.0) for of, reason in server.unready.items()))
        facts = ((*labels, d.execution_devices, d.precision, str(d.from_cache).lower()) for labels, d in devices)
        yield info(instruments.MODEL_INFO, facts)
        yield info(instruments.BUILD, [(server.version, server.openvino, platform.python_version())])
        tunings = server.tunings.items()
        decisions = (((*labels, decision), n) for labels, t in tunings for decision, n in t.decisions.items())
        yield counter(instruments.TUNING_DECISIONS, decisions)
        yield counter(instruments.TUNING_SECONDS, ((labels, t.seconds) for labels, t in tunings))


def _samples(field: SnapshotField, records: _Labelled) -> Iterator[tuple[tuple[str, ...], float]]:
    """One for each record that has a value; one for each key of a mapping."""
    for labels, record in records:
        value = field.read(record)
        if isinstance(value, Mapping):
            for key, number in value.items():
                yield (*labels, *(key if isinstance(key, tuple) else (key,))), number
        elif value is not None:
            yield labels, value
