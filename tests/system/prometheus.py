"""A real Prometheus, a real Alertmanager and a receiver of notifications, for tests that scrape and are paged."""

import http.client
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import pytest
import yaml

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 30.0
# Between two looks at a server, in seconds.
_PAUSE = 0.05

Sample = dict[str, Any]
"""{"metric": labels, "value": float}."""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips tests where one of ``programs`` is not installed; where CI is set they run, and fail."""
    absent = [program for program in programs if shutil.which(program) is None]
    reason = f"not installed: {', '.join(absent)}; `.ci/setup` installs them on Debian"
    return pytest.mark.skipif(bool(absent) and not os.environ.get("CI"), reason=reason)


class _Server:
    """A server of Prometheus's family that chose its port itself and said so in its log."""

    def __init__(self, *command: str) -> None:
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name=f"{command[0]}-log", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def address(self) -> str:
        """HOST:PORT it listens on; waits until it does."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._listening(), _START_TIMEOUT)
            if (found := self._listening()) is not None:
                return found
        raise AssertionError(f"it does not listen\n{self.log()}")

    def _listening(self) -> str | None:
        seen = (re.search(r'msg="Listening on" address=(\S+)', line) for line in self._lines)
        return next((match[1] for match in seen if match), None)

    def log(self) -> str:
        """The whole log so far, for messages of failing tests."""
        with self._changed:
            return f"--- log of {self.process.args!r}\n" + "\n".join(self._lines) + "\n---"

    def wait_until_ready(self) -> None:
        url = f"http://{self.address()}/-/ready"
        until(lambda: _exchange(url)[0] == 200, _START_TIMEOUT, lambda: f"{url} does not say ready\n{self.log()}")

    def stop(self) -> None:
        """End it, by force if asking does not do; harmless when called again."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()


class Prometheus:
    """Debian's `prometheus` on a free loopback port, scraping ``targets`` (HOST:PORT) every ``interval``.

    Rules are evaluated as often. It starts at once; entering the context waits until it is ready, leaving it
    stops it. It first scrapes some 5 s after its start, which is how it finds targets. ``rules`` are rule files,
    ``alertmanager`` is the HOST:PORT that alerts are sent to. What it stores stays in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        targets: Sequence[str],
        *,
        interval: str = "1s",
        rules: Sequence[Path] = (),
        alertmanager: str | None = None,
        exemplars: bool = False,
        job: str = "inferd",
    ) -> None:
        settings: dict[str, Any] = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(path.resolve()) for path in rules],
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": list(targets)}]}],
        }
        if alertmanager is not None:
            settings["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
        self._targets = len(targets)
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        # An alert that got lost on its way is sent again after this, not after the usual minute.
        command += ["--web.listen-address=127.0.0.1:0", "--rules.alert.resend-delay=5s"]
        self._server = _Server(*command, *(["--enable-feature=exemplar-storage"] if exemplars else []))

    def __enter__(self) -> Self:
        try:
            self._server.wait_until_ready()
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        """http://HOST:PORT."""
        return f"http://{self._server.address()}"

    def log(self) -> str:
        """The whole log so far, for messages of failing tests."""
        return self._server.log()

    def query(self, expr: str) -> list[Sample]:
        """The instant vector (or scalar, as one sample without labels) that ``expr`` gives now."""
        answer = self._ask("query", query=expr)
        if answer["resultType"] == "scalar":
            return [{"metric": {}, "value": float(answer["result"][1])}]
        return [{"metric": one["metric"], "value": float(one["value"][1])} for one in answer["result"]]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Each series of ``expr`` in that time: {"metric": labels, "values": [(seconds since the epoch, float)]}."""
        answer = self._ask("query_range", query=expr, start=str(start), end=str(end), step=str(step))
        return [
            {"metric": one["metric"], "values": [(float(at), float(value)) for at, value in one["values"]]}
            for one in answer["result"]
        ]

    def exemplars(self, expr: str) -> list[dict[str, Any]]:
        """Exemplars of the last hour: {"seriesLabels": ..., "exemplars": [{"labels", "value", "timestamp"}]}."""
        now = time.time()
        found: list[dict[str, Any]] = self._ask("query_exemplars", query=expr, start=str(now - 3600), end=str(now + 60))
        return found

    def wait_for(self, expr: str, predicate: Callable[[list[Sample]], bool], timeout: float = 60.0) -> list[Sample]:
        """What ``expr`` gives as soon as ``predicate`` holds for it."""
        seen: list[Sample] = []

        def holds() -> bool:
            seen[:] = self.query(expr)
            return predicate(seen)

        until(holds, timeout, lambda: f"{expr} is {seen} after {timeout:.0f} s\n{self.log()}")
        return seen

    def wait_for_scrapes(self, number: int = 2, timeout: float = 60.0) -> None:
        """Return once every target was scraped so often, and well."""
        # `up` is 1 at each scrape that went well.
        scraped = f"count(sum_over_time(up[1h]) >= {number}) == {self._targets}"
        self.wait_for(scraped, bool, timeout)

    def targets(self) -> list[dict[str, Any]]:
        """The targets that are scraped, as the API tells: "health", "lastError", "labels", ..."""
        found: list[dict[str, Any]] = self._ask("targets", state="active")["activeTargets"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing: "labels", "annotations", "state", "activeAt", "value"."""
        found: list[dict[str, Any]] = self._ask("alerts")["alerts"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """All rules, as the API tells: "name", "type", "health", "lastError", ..."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, what: str, **parameters: str) -> Any:
        status, body = _exchange(f"{self.url}/api/v1/{what}?{urlencode(parameters)}")
        answer = json.loads(body) if body.startswith("{") else {}
        assert status == 200, f"{what} {parameters}: {status} {answer.get('error', body)}"
        return answer["data"]


class Alertmanager:
    """Debian's `prometheus-alertmanager` on a free loopback port; posts to the URL ``webhook`` what it is told.

    Each alert is a notification of its own, sent within a fraction of a second and not repeated; ``inhibit_rules``
    are as in its configuration file.
    """

    def __init__(self, folder: Path, webhook: str, inhibit_rules: Sequence[Mapping[str, Any]] = ()) -> None:
        route = {"receiver": "test", "group_by": ["..."], "group_wait": "100ms", "group_interval": "200ms"}
        settings = {
            "route": {**route, "repeat_interval": "1h"},
            "receivers": [{"name": "test", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
            "inhibit_rules": [dict(rule) for rule in inhibit_rules],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
        command = ["prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}"]
        command += [f"--storage.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0"]
        self._server = _Server(*command, "--cluster.listen-address=")

    def __enter__(self) -> Self:
        try:
            self._server.wait_until_ready()
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._server.address()

    def log(self) -> str:
        """The whole log so far, for messages of failing tests."""
        return self._server.log()

    def post(self, *alerts: Mapping[str, str]) -> None:
        """Alerts with these labels, as a Prometheus would send them."""
        body = json.dumps([{"labels": labels} for labels in alerts])
        status, answer = _exchange(f"http://{self.address}/api/v2/alerts", body)
        assert status == 200, answer

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts it knows, as its API tells: "labels", "annotations", "status" with "state", "inhibitedBy", ..."""
        status, body = _exchange(f"http://{self.address}/api/v2/alerts")
        assert status == 200, body
        found: list[dict[str, Any]] = json.loads(body)
        return found


class Receiver:
    """An HTTP server on a free loopback port that keeps what an Alertmanager posts to :attr:`url`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._notifications: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._keep(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
                """Notifications are kept, not logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True)

    def _keep(self, notification: dict[str, Any]) -> None:
        with self._changed:
            self._notifications.append(notification)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    @property
    def notifications(self) -> list[dict[str, Any]]:
        """What was posted so far, oldest first."""
        with self._changed:
            return list(self._notifications)

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The alerts of all notifications so far: "status" (firing or resolved), "labels", "annotations", ..."""
        return [alert for notification in self.notifications for alert in notification["alerts"]]

    def wait_for(self, status: str, timeout: float = 60.0, **labels: str) -> dict[str, Any]:
        """The first alert with that status and those labels among others, once it has come."""

        def found() -> dict[str, Any] | None:
            return next(
                (a for a in self.alerts if a["status"] == status and labels.items() <= a["labels"].items()), None
            )

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, timeout)
            if (alert := found()) is not None:
                return alert
        seen = [(alert["status"], alert["labels"]) for alert in self.alerts]
        raise AssertionError(f"no alert came that is {status} with {labels} within {timeout:.0f} s; came: {seen}")


def finite(samples: Sequence[Sample]) -> bool:
    """Whether there is a sample and all are numbers that can be drawn."""
    return bool(samples) and all(math.isfinite(one["value"]) for one in samples)


def until(holds: Callable[[], bool], timeout: float, problem: Callable[[], str]) -> None:
    """Return as soon as ``holds`` does; fail with ``problem``. It asks a server that can't say when it has changed."""
    given_up = time.monotonic() + timeout
    pause = threading.Event()  # never set
    while not holds():
        assert time.monotonic() < given_up, problem()
        pause.wait(_PAUSE)


def _exchange(url: str, posted: str | None = None) -> tuple[int, str]:
    """Status and body, of a GET where nothing is ``posted``."""
    parts = urlsplit(url)
    # Not urllib, which would ask a proxy of the environment.
    connection = http.client.HTTPConnection(parts.netloc, timeout=30.0)
    try:
        connection.request(
            "GET" if posted is None else "POST",
            f"{parts.path}?{parts.query}",
            body=posted,
            headers={"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
