"""What a worker says to its supervisor, on a socket in their folder: a word is asked, and answered whole."""

import socket
import socketserver
import sys
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

import structlog

log = structlog.get_logger("inferd.workers")

Key = TypeVar("Key", bound=Hashable)
Answers = Mapping[str, Callable[[], bytes]]

# A question is one word; whoever takes longer to ask it than this, in seconds, has gone away.
_PATIENCE = 5.0
_LONGEST_WORD = 64


class Channel:
    """Answers from :meth:`start` on, each question on a thread of its own. ``answers`` are called there."""

    def __init__(self, path: Path, answers: Answers) -> None:
        # Of the process that was this worker before.
        path.unlink(missing_ok=True)

        class Ask(socketserver.StreamRequestHandler):
            timeout = _PATIENCE

            def handle(self) -> None:
                word = self.rfile.readline(_LONGEST_WORD).decode().strip()
                self.wfile.write(answers[word]())

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the library's signature
                # Whoever asked may have gone away.
                if not isinstance(sys.exception(), OSError):
                    log.warning("a question could not be answered", exc_info=True)

        self._server = Server(str(path), Ask)
        # How often it looks whether it was closed, in seconds.
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="channel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Answer no more; harmless when called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def ask(path: Path, word: str, timeout: float) -> bytes:
    """What the worker behind ``path`` answers. Raises OSError where it does not within ``timeout`` seconds a piece."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        line.connect(str(path))
        line.sendall(word.encode() + b"\n")
        parts = []
        while part := line.recv(1 << 18):
            parts.append(part)
    if not parts:
        raise OSError("it hung up without an answer")
    return b"".join(parts)


def ask_all(paths: Mapping[Key, Path], word: str, timeout: float) -> dict[Key, bytes]:
    """What those behind ``paths`` answer, asked at the same time; who does not is left out."""

    def one(key: Key) -> None:
        with suppress(OSError):
            answers[key] = ask(paths[key], word, timeout)

    answers: dict[Key, bytes] = {}
    if paths:
        with ThreadPoolExecutor(len(paths)) as pool:
            for asked in [pool.submit(one, key) for key in paths]:
                asked.result()
    return answers
