"""A worker's reports to its supervisor, on a socket in their folder: a one-word query gets one report."""

import socket
import socketserver
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

import structlog

log = structlog.get_logger("inferd.workers")

Key = TypeVar("Key", bound=Hashable)
Reports = Mapping[str, Callable[[], bytes]]

# Seconds that a client may take to send its one-word query.
_PATIENCE = 5.0
_LONGEST_WORD = 64
# Zero would mean not to wait at all.
_SHORTEST = 0.001


class ReportServer:
    """Answers queries from :meth:`start` on, each on its own thread, on which it calls ``answers``."""

    def __init__(self, path: Path, answers: Reports) -> None:
        # Left behind by this worker's previous process.
        path.unlink(missing_ok=True)

        class Handler(socketserver.StreamRequestHandler):
            timeout = _PATIENCE

            def handle(self) -> None:
                word = self.rfile.readline(_LONGEST_WORD).decode().strip()
                self.wfile.write(answers[word]())

        class UnixServer(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the library's signature
                # The client may be gone.
                if not isinstance(sys.exception(), OSError):
                    log.warning("worker report failed", exc_info=True)

        self._server = UnixServer(str(path), Handler)
        # The interval, in seconds, at which it checks whether it was closed.
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="channel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop answering; harmless when called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def query(path: Path, word: str, timeout: float) -> bytes:
    """The answer of the worker at ``path``. Raises OSError if it takes longer than ``timeout`` seconds."""
    until = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(word.encode() + b"\n")
        parts = []
        while part := connection.recv(1 << 18):
            parts.append(part)
            connection.settimeout(max(_SHORTEST, until - time.monotonic()))
    if not parts:
        raise OSError("it closed the connection without a response")
    return b"".join(parts)


def query_all(paths: Mapping[Key, Path], word: str, timeout: float) -> dict[Key, bytes]:
    """The answers of the workers at ``paths``, queried in parallel; workers that don't answer are left out."""

    def one(key: Key) -> None:
        with suppress(OSError):
            answers[key] = query(paths[key], word, timeout)

    answers: dict[Key, bytes] = {}
    if paths:
        with ThreadPoolExecutor(len(paths)) as pool:
            for future in [pool.submit(one, key) for key in paths]:
                future.result()
    return answers
