"""Metric families as the client library wants them, made of declared instruments and samples."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.samples import Exemplar, Sample

from inferd.metrics.histogram import Exemplar as CellExemplar
from inferd.metrics.histogram import Histogram
from inferd.metrics.instruments import Instrument
from inferd.metrics.merge_text import labels_of

# Values of the instrument's labels, in its order, and the sample.
Samples = Iterable[tuple[tuple[str, ...], float]]


def gauge(instrument: Instrument, samples: Samples) -> Metric:
    """``instrument`` with one series for each of ``samples``."""
    family = GaugeMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
    family.samples = PairSamples(instrument.name, instrument.labels, tuple(samples))  # type: ignore[assignment]
    return family


def counter(instrument: Instrument, samples: Samples) -> Metric:
    """Likewise; the samples only ever rise."""
    family = CounterMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
    name = f"{instrument.name}_total"
    family.samples = PairSamples(name, instrument.labels, tuple(samples))  # type: ignore[assignment]
    return family


class PairSamples:
    """Makes samples of ``pairs`` of label values and number as they are asked for, for who can't do without."""

    def __init__(self, name: str, labels: tuple[str, ...], pairs: tuple[tuple[tuple[str, ...], float], ...]) -> None:
        self.name = name
        self.pairs = pairs
        self._labels = labels

    def named(self, values: tuple[str, ...]) -> dict[str, str]:
        """``values`` by name."""
        return dict(zip(self._labels, values, strict=True))

    def __iter__(self) -> Iterator[Sample]:
        for values, value in self.pairs:
            yield Sample(self.name, self.named(values), float(value))


def info(instrument: Instrument, series: Iterable[tuple[str, ...]]) -> Metric:
    """Facts as labels, each series with the value 1."""
    family = InfoMetricFamily(instrument.name, instrument.help, labels=())
    for labels in series:
        family.add_metric((), dict(zip(instrument.labels, labels, strict=True)))
    return family


def histogram(instrument: Instrument, cells: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    """A histogram for each of ``cells``, with its exemplars; read when the samples are, one cell after the other."""
    family = HistogramMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
    family.samples = HistogramSamples(instrument, tuple(cells))  # type: ignore[assignment]  # it is only iterated over
    return family


class HistogramSamples:
    """Makes the samples of ``cells`` as they are asked for: all at once would keep the interpreter busy for long."""

    def __init__(self, instrument: Instrument, cells: tuple[tuple[tuple[str, ...], Histogram], ...]) -> None:
        self._instrument = instrument
        self.cells = cells

    def named(self, labels: tuple[str, ...]) -> dict[str, str]:
        """``labels`` by their names."""
        return dict(zip(self._instrument.labels, labels, strict=True))

    def __iter__(self) -> Iterator[Sample]:
        name = self._instrument.name
        for labels, cell in self.cells:
            named = self.named(labels)
            buckets, total = cell.cumulative()
            for (bound, count), exemplar in zip(buckets, tuple(cell.exemplars), strict=True):
                labelled = {**named, "le": bound}
                yield Sample(f"{name}_bucket", labelled, count, None, exemplar and _as_sample(exemplar))
            yield Sample(f"{name}_count", named, buckets[-1][1])
            yield Sample(f"{name}_sum", named, total)


class HeadSamples:
    """Makes samples of ``values``: number and exemplar's text by the head of its line, as workers.merge_text has
    them."""

    def __init__(self, values: Mapping[str, tuple[float, str]]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Sample]:
        for head, (value, text) in self.values.items():
            yield Sample(head.partition("{")[0], labels_of(head), value, None, _of_text(text) if text else None)


def _of_text(text: str) -> Exemplar:
    labels, _, rest = text.rpartition("} ")
    value, _, at = rest.partition(" ")
    return Exemplar(labels_of(f"{labels}}}"), float(value), float(at) if at else None)


def _as_sample(exemplar: CellExemplar) -> Exemplar:
    trace_id, value, at = exemplar
    return Exemplar({"trace_id": trace_id}, value, at)
