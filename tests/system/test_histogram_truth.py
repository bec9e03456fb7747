"""Quantiles that a real Prometheus reads off the histograms, against the exact ones of what the clients saw."""

import asyncio
import math
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.prometheus import Prometheus, needs
from tests.system.series import Series, scrape
from tests.system.wire import connect, method, steps

pytestmark = [pytest.mark.system, needs("prometheus")]

MODEL = "steps"
CLIENTS = 2
"""As many as the model runs at a time: no request waits."""
REQUESTS = 600
FEWEST, MOST = 15, 300
"""Steps of a run; the numbers between them are spread evenly over their magnitudes."""
OBJECTIVE = 1.3
"""Seconds: none of the usual boundaries, and far above what anything takes, so that no request is refused."""
SECONDS = "inferd_request_duration_seconds"
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Seen:
    """The same requests, seen by the clients, in seconds; by the server; and by Prometheus: quantiles by expression."""

    latencies: list[float]
    series: Series
    estimates: dict[str, dict[float, float]]

    @property
    def buckets(self) -> dict[float, int]:
        """Upper bound -> requests at or below it, as the server counted them; ascending."""
        found = self.series.by(f"{SECONDS}_bucket", "le")
        bounds = {float(dict(pairs)["le"]) for name, pairs in self.series.values if name == f"{SECONDS}_bucket"}
        counted = {float(le): int(number) for (le,), number in found.items()}
        return {bound: counted.get(bound, 0) for bound in sorted(bounds)}


EXPRESSIONS = {
    "since the start": f'sum by (le) ({SECONDS}_bucket{{model="{MODEL}"}})',
    "by rate": f'sum by (le) (rate({SECONDS}_bucket{{model="{MODEL}"}}[5m]))',
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("histograms")
    settings = f"[execution]\nstreams = {CLIENTS}\nthreads = {CLIENTS}\ninfer_requests = {CLIENTS}\n"
    settings += f"[objective]\nlatency_slo = {OBJECTIVE}\n"
    models.save(echo_models.steps(), folder / "repository", MODEL, settings=settings)
    with (
        Daemon(folder / "repository", "--cache-dir", str(cache_dir), "--request-log", "off") as daemon,
        Prometheus(folder / "prometheus", [daemon.metrics]) as prometheus,
    ):
        # What counts from 0 on is seen at 0 first: increases are then known from the first request on.
        prometheus.wait_for_scrapes(1)
        latencies = asyncio.run(load(daemon))
        series = scrape(daemon)
        prometheus.wait_for(f'{SECONDS}_count{{model="{MODEL}"}} == {REQUESTS}', bool)
        estimates = {
            name: {q: prometheus.query(f"histogram_quantile({q}, {expr})")[0]["value"] for q in QUANTILES}
            for name, expr in EXPRESSIONS.items()
        }
        yield Seen(latencies, series, estimates)
        assert daemon.stop() == 0, daemon.log()


async def load(daemon: Daemon) -> list[float]:
    """Seconds from just before each request was sent until its answer was there."""
    chance = random.Random(5)
    lengths = iter([round(math.exp(chance.uniform(math.log(FEWEST), math.log(MOST)))) for _ in range(REQUESTS)])
    latencies: list[float] = []

    async def ask() -> None:
        async with connect(daemon.grpc) as channel:
            await channel.channel_ready()
            infer = method(channel, "ModelInfer")
            for length in lengths:
                message = steps(length, model=MODEL)
                start = time.monotonic()
                await infer(message)
                latencies.append(time.monotonic() - start)

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return latencies


def exact(latencies: list[float], share: float) -> float:
    """The smallest latency that at least ``share`` of them do not exceed: one of them, never between two."""
    return float(np.quantile(latencies, share, method="inverted_cdf"))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_quantiles_by_prometheus_are_within_a_bucket_of_the_exact_ones(
    seen: Seen, expression: str, figure: Callable[[str], None]
) -> None:
    """The estimate lies in the bucket that holds the exact quantile or in one that touches it."""
    bounds = list(seen.buckets)
    told = []
    for share, estimate in seen.estimates[expression].items():
        known = exact(seen.latencies, share)
        assert abs(bisect_left(bounds, estimate) - bisect_left(bounds, known)) <= 1, (share, estimate, known)
        told.append(f"p{share * 100:g} {estimate * 1000:.1f} ms, exactly {known * 1000:.1f}")
    figure(f"histogram truth, {expression}: {'; '.join(told)}")


def test_the_quantiles_spread_over_several_buckets(seen: Seen) -> None:
    """Or being within a bucket would say nothing."""
    bounds = list(seen.buckets)
    first, *_, last = (bisect_left(bounds, exact(seen.latencies, share)) for share in QUANTILES)
    assert last - first >= 2


def test_no_bucket_counts_fewer_requests_than_clients_saw_to_be_that_quick(seen: Seen) -> None:
    """What a client sees of a request begins before what the server sees of it, and ends after."""
    assert len(seen.latencies) == list(seen.buckets.values())[-1] == REQUESTS
    for bound, counted in seen.buckets.items():
        assert counted >= sum(latency <= bound for latency in seen.latencies), bound
    assert seen.series.total(f"{SECONDS}_sum") <= sum(seen.latencies)


def test_the_objective_is_a_boundary_and_counts_who_met_it(seen: Seen) -> None:
    met = seen.series.total("inferd_objective_met_total", model=MODEL)
    assert seen.buckets[OBJECTIVE] == met > 0
    assert met + seen.series.total("inferd_objective_missed_total", model=MODEL) == REQUESTS
    assert seen.series.total("inferd_objective_latency_seconds", model=MODEL) == OBJECTIVE
