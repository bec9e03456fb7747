"""How each model is set up, and what became of tuning it; read at scrape time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inferd.metrics import instruments


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """What one model version runs with on one device, as read back."""

    model: str
    version: str
    device: str
    streams: int
    threads: int
    infer_requests: int
    max_joined: int


@dataclass(frozen=True, slots=True)
class ModelTuning:
    """Tunings of one model version that ended, by decision; seconds spent; the last gain, 0 if unknown."""

    model: str
    version: str
    decisions: Mapping[str, int]
    seconds: float
    gain: float


_SETUP: tuple[tuple[instruments.Instrument, Callable[[ModelSetup], int]], ...] = (
    (instruments.STREAMS, lambda setup: setup.streams),
    (instruments.THREADS, lambda setup: setup.threads),
    (instruments.INFER_REQUESTS, lambda setup: setup.infer_requests),
    (instruments.MAX_JOINED, lambda setup: setup.max_joined),
)


class TuningCollector(Collector):
    """See the module's text."""

    def __init__(
        self, setups: Callable[[], Iterable[ModelSetup]], tunings: Callable[[], Iterable[ModelTuning]]
    ) -> None:
        self._setups, self._tunings = setups, tunings

    def collect(self) -> Iterator[Metric]:
        setups, tunings = list(self._setups()), list(self._tunings())
        for instrument, value in _SETUP:
            family = GaugeMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
            for setup in setups:
                family.add_metric((setup.model, setup.version, setup.device), float(value(setup)))
            yield family
        decided = _counter(instruments.TUNING_DECISIONS)
        seconds = _counter(instruments.TUNING_SECONDS)
        gain = GaugeMetricFamily(
            instruments.TUNING_GAIN.name, instruments.TUNING_GAIN.help, labels=instruments.TUNING_GAIN.labels
        )
        for tuning in tunings:
            for decision, count in tuning.decisions.items():
                decided.add_metric((tuning.model, tuning.version, decision), float(count))
            seconds.add_metric((tuning.model, tuning.version), tuning.seconds)
            gain.add_metric((tuning.model, tuning.version), tuning.gain)
        yield from (decided, seconds, gain)


def _counter(instrument: instruments.Instrument) -> CounterMetricFamily:
    return CounterMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
