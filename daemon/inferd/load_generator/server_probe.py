"""Asks a server for its counts and resource usage: ModelStatistics, and its /metrics or the kernel's figures."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from inferd.bench.server_side import STAGES, Counted, Resources, Sample
from inferd.errors import InferdError
from inferd.rpc.client import InferenceClient
from inferd.rpc.rpc_client import CallFailed
from inferd.security.client_credentials import ClientCredentials
from inferd.security.tls_mismatch import speaks_tls

_PATIENCE = 5.0
_CPU, _RSS = "process_cpu_seconds_total", "process_resident_memory_bytes"


class NoResourceUsage(InferdError):
    """The source of the server's CPU time and memory has none."""


class ResourceSource(Protocol):
    """A source of the server's resource usage."""

    def read(self) -> Resources:
        """Read it now. Raises NoResourceUsage."""


class MetricsPage:
    """The Prometheus page at ``url``, with the usual names of process metrics."""

    def __init__(self, url: str, credentials: ClientCredentials) -> None:
        self._url = url
        self._headers = {"Authorization": credentials.authorization} if credentials.token else {}
        self._context = credentials.context() if urlsplit(url).scheme == "https" else None

    def read(self) -> Resources:
        request = urllib.request.Request(self._url, headers=self._headers)  # noqa: S310 - the flag allows http alone
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE, context=self._context) as answer:  # noqa: S310
                lines = answer.read().decode("utf-8", "replace").splitlines()
        except (OSError, ValueError, HTTPException) as error:
            raise NoResourceUsage(
                f"{self._url}: {self._mismatch() or getattr(error, 'reason', None) or error}"
            ) from None
        cpu, rss = _sum(lines, _CPU), _sum(lines, _RSS)
        if cpu is None or rss is None:
            raise NoResourceUsage(f"{self._url}: has no {_CPU if cpu is None else _RSS}")
        return Resources(cpu, round(rss))

    def _mismatch(self) -> str:
        """Which scheme the URL should have, if a wrong one is why the page can't be read; otherwise ""."""
        url = urlsplit(self._url)
        spoken = speaks_tls(f"{url.hostname}:{url.port or {'http': 80, 'https': 443}[url.scheme]}")
        if spoken is True and url.scheme == "http":
            return "accepts only TLS connections; use https:// and name the CA of its certificate with --ca FILE"
        return "does not use TLS; use http://" if spoken is False and url.scheme == "https" else ""


class ProcessTree:
    """The process ``pid`` and its descendants, from /proc."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._pid = pid
        self._proc = proc
        self._tick = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> Resources:
        cpu, rss = 0, 0
        for pid in self._tree(self._pid):
            try:
                # The name may contain anything, but the text after its bracket does not.
                fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            except OSError as error:
                if pid == self._pid:
                    raise NoResourceUsage(f"process {pid}: {error.strerror}") from None
                continue
            # proc(5): utime, stime and rss are fields 14, 15 and 24; the first here is 3.
            cpu += int(fields[11]) + int(fields[12])
            rss += int(fields[21])
        return Resources(cpu / self._tick, rss * self._page)

    def _tree(self, pid: int) -> Iterator[int]:
        yield pid
        for file in (self._proc / str(pid) / "task").glob("*/children"):
            try:
                children = file.read_text().split()
            except OSError:
                continue  # a thread that has ended
            for child in children:
                yield from self._tree(int(child))


class ServerProbe:
    """Reports on ``model`` from the server that ``client`` calls, and from ``resources`` if given.

    A server without statistics, or one that refuses them, reports nothing.
    """

    def __init__(self, client: InferenceClient, model: str, version: str, *, resources: ResourceSource | None) -> None:
        self._client = client
        self._model, self._version = model, version
        self._resources = resources

    def sample(self) -> Sample:
        """Sample now. What a server in trouble does not report is unknown; the run goes on."""
        resources = None
        with suppress(NoResourceUsage):
            resources = self.resources()
        return Sample(self._counted(), resources)

    def resources(self) -> Resources | None:
        """Its usage now; None without a source. Raises NoResourceUsage."""
        return None if self._resources is None else self._resources.read()

    def _counted(self) -> Counted | None:
        try:
            answer = self._client.model_statistics(self._model, self._version)
        except CallFailed:
            return None
        seen = [s for s in answer.model_stats if s.name == self._model]
        durations = {name: [getattr(s.inference_stats, name) for s in seen] for name in ("success", *STAGES)}
        sums = {name: (sum(d.count for d in ds), sum(d.ns for d in ds)) for name, ds in durations.items()}
        return Counted(
            sums.pop("success"), sums, sum(s.inference_count for s in seen), sum(s.execution_count for s in seen)
        )


def _sum(lines: list[str], name: str) -> float | None:
    """The sum of the samples of ``name`` over all labels; None if there are none."""
    values = [
        line.rpartition("}")[2].split() if "{" in line else line.split()[1:]
        for line in lines
        if line.startswith((f"{name} ", f"{name}{{"))
    ]
    return sum(float(v[0]) for v in values) if values else None
