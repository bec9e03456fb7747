"""Certificate, tokens and refusals, as series."""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.metrics import instruments
from inferd.metrics.families import counter, gauge
from inferd.security.credentials import Credentials


class SecurityCollector(Collector):
    """Reads ``credentials`` at each scrape; without any there are no series."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def collect(self) -> Iterator[Metric]:
        credentials = self._credentials
        if (certificate := credentials.certificate) is not None:
            yield gauge(instruments.CERTIFICATE_EXPIRY, [((), certificate.expires)])
        if watched_file := tuple(credentials.watched_files()):
            yield gauge(instruments.CREDENTIALS_CURRENT, (((one.kind,), one.current) for one in watched_file))
            readings = (((one.kind, result), n) for one in watched_file for result, n in one.readings.items())
            yield counter(instruments.CREDENTIALS_RELOADS, readings)
        if credentials.authority is not None:
            yield counter(instruments.REFUSED_CALLS, credentials.denied_calls.counts.items())
