"""How models are set up and what became of tuning, as a scrape reads it."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from inferd.metrics import instruments
from inferd.metrics.instruments import Instrument
from inferd.metrics.tuning import ModelSetup, ModelTuning, TuningCollector
from inferd.tuning.record import Decision

SETUPS = [
    ModelSetup("m", "1", "CPU", streams=2, threads=4, infer_requests=8, max_joined=16),
    ModelSetup("n", "3", "GPU.1", streams=1, threads=0, infer_requests=2, max_joined=1),
]
TUNINGS = [
    ModelTuning("m", "1", {"promoted": 2, "kept": 1}, seconds=61.5, gain=1.25),
    ModelTuning("n", "3", {}, seconds=0.0, gain=0.0),
]
OF_SETUPS = (instruments.STREAMS, instruments.THREADS, instruments.INFER_REQUESTS, instruments.MAX_JOINED)
OF_TUNINGS = (instruments.TUNING_DECISIONS, instruments.TUNING_SECONDS, instruments.TUNING_GAIN)


def scraped(collector: TuningCollector) -> dict[tuple[str, ...], float]:
    """Every sample as Prometheus reads it: name, then label values in the order of their names."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_each_model_version_shows_what_it_runs_with_on_its_device() -> None:
    samples = scraped(TuningCollector(lambda: SETUPS, list))
    # Labels by name: device, model, version.
    assert samples == {
        ("inferd_streams", "CPU", "m", "1"): 2,
        ("inferd_threads", "CPU", "m", "1"): 4,
        ("inferd_infer_requests", "CPU", "m", "1"): 8,
        ("inferd_max_joined_rows", "CPU", "m", "1"): 16,
        ("inferd_streams", "GPU.1", "n", "3"): 1,
        ("inferd_threads", "GPU.1", "n", "3"): 0,
        ("inferd_infer_requests", "GPU.1", "n", "3"): 2,
        ("inferd_max_joined_rows", "GPU.1", "n", "3"): 1,
    }


def test_tunings_are_counted_by_how_they_ended() -> None:
    samples = scraped(TuningCollector(list, lambda: TUNINGS))
    # Labels by name: decision, model, version.
    assert samples == {
        ("inferd_tuning_decisions_total", "promoted", "m", "1"): 2,
        ("inferd_tuning_decisions_total", "kept", "m", "1"): 1,
        ("inferd_tuning_seconds_total", "m", "1"): 61.5,
        ("inferd_tuning_gain_ratio", "m", "1"): 1.25,
        ("inferd_tuning_seconds_total", "n", "3"): 0,
        ("inferd_tuning_gain_ratio", "n", "3"): 0,
    }


def test_everything_is_read_when_it_is_asked_for() -> None:
    setups, tunings = list(SETUPS), list(TUNINGS)
    collector = TuningCollector(lambda: setups, lambda: tunings)
    before = scraped(collector)
    setups[:] = [ModelSetup("m", "1", "CPU", 9, 9, 9, 9)]
    tunings.clear()
    assert len(before) == 8 + 6
    assert set(scraped(collector).values()) == {9}


@pytest.mark.parametrize("instrument", [*OF_SETUPS, *OF_TUNINGS], ids=lambda i: i.name)
def test_each_family_is_declared_once_and_there_from_the_start(instrument: Instrument) -> None:
    families = {family.name: family for family in TuningCollector(list, list).collect()}
    family = families[instrument.name]
    assert (family.type, family.documentation) == (instrument.kind, instrument.help)
    assert family.samples == []
    assert instrument in instruments.ALL
    assert len(families) == len(OF_SETUPS) + len(OF_TUNINGS)


@pytest.mark.parametrize("decision", Decision)
def test_each_way_to_end_is_explained(decision: Decision) -> None:
    assert decision.value in instruments.TUNING_DECISIONS.help
