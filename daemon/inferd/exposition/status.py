"""The status page: the page itself, and its data, read once a second."""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from threading import Event, Lock, Thread

import structlog

from inferd.metrics import record_json
from inferd.metrics.rolling import History
from inferd.metrics.snapshot import ServerSnapshot

log = structlog.get_logger("inferd")

_INTERVAL = 1.0

# Between two models: a thread that computes keeps the interpreter from the event loop for up to 5 ms, one that
# sleeps, however shortly, hands it over.
_NAP_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class Page:
    """The page's bytes, and the Content-Security-Policy that lets them do what they do and nothing else."""

    body: bytes
    policy: str

    @classmethod
    def read(cls) -> "Page":
        """The page that came with this package; it stands by itself, whatever it says is fetched from /status.json."""
        body = resources.files("inferd.exposition").joinpath("status.html").read_bytes()
        policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hashes(body, b'script')}",
                f"style-src {_hashes(body, b'style')}",
                "connect-src 'self'",
                "img-src data:",  # its icon
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )
        return cls(body, policy)


def _hashes(body: bytes, tag: bytes) -> str:
    texts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts)


class Status:
    """Reads the figures once a second on a thread of its own, and answers for the last of them."""

    def __init__(self, read: Callable[[], ServerSnapshot | None], interval: float = _INTERVAL) -> None:
        """``read`` is called on that thread, and gives None while there is nothing to show; what it raises is logged,
        once of a kind, and tried again."""
        self.page = Page.read()
        self._read, self._interval = read, interval
        self._history = History()
        self._read_at: float | None = None
        self._lock = Lock()
        self._stop = Event()
        self._logged: set[type[Exception]] = set()
        self._thread = Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Take the first reading, and begin to take the others."""
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Take no more readings; harmless when called again, or before the start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def body(self, since: int = 0) -> bytes | None:
        """The answer to ``/status.json?since=``: metrics.rolling.ServerView and ``age``, the seconds since its reading.

        None while there was no reading.
        """
        with self._lock:
            view, read_at = self._history.view(since, _nap), self._read_at
        if view is None or read_at is None:
            return None
        models = []
        for model in view.models:
            models.append(record_json.encode(model))
            _nap()
        server = record_json.plain(replace(view, models=[]))
        server |= {"age": round(time.monotonic() - read_at, 1)}
        del server["models"]
        return f'{record_json.encode(server)[:-1]},"models":[{",".join(models)}]}}\n'.encode()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        try:
            snapshot = self._read()
        except Exception as error:
            if type(error) not in self._logged:
                self._logged.add(type(error))
                log.exception("status page snapshot failed")
            return
        if snapshot is None:
            return
        with self._lock:
            self._history.add(snapshot)
            self._read_at = snapshot.at


def _nap() -> None:
    time.sleep(_NAP_SECONDS)
