"""A client that costs as little as Python allows: closed loops on gRPC's own completion queue, in one thread.

    python -m benchmarks.lean_client 127.0.0.1:8001 --request request.bin --in-flight 8 --seconds 2

Next to a fast server, grpc.aio's client would be what is measured. Sends the bytes in the file over and over, unary or
over ``--streams`` streams of one connection, and prints a line of JSON: answers, seconds, errors, and percentiles of
the latency in seconds. Like the server (inferd.transport) it uses parts of grpcio that are not published.
"""

import argparse
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpc._cython import cygrpc

from benchmarks.open_loop import METHOD

STREAM = METHOD.replace("ModelInfer", "ModelStreamInfer")
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a closed loop heard in its window of ``seconds``; latencies in seconds."""

    answers: int
    errors: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Loop:
    """A closed loop over one connection to ``target``."""

    def __init__(self, target: str, message: bytes, patience: float | None = None) -> None:
        self._channel = cygrpc.Channel(target.encode(), _OPTIONS, None)
        self._message = message
        self._patience = patience
        self._latencies: list[float] = []
        self._errors = 0
        self._over = False
        self._open = 0

    def run(self, in_flight: int, streams: int, warm_up: float, seconds: float) -> Heard:
        """Keep ``in_flight`` requests open, unary or spread over ``streams`` streams."""
        start = self._stream if streams else self._ask
        for number in range(streams or in_flight):
            start(in_flight // (streams or 1) + (number < in_flight % (streams or 1)) if streams else 1)
        self._turn(time.perf_counter() + warm_up)
        self._latencies, self._errors = [], 0
        begun = time.perf_counter()
        self._turn(begun + seconds)
        took, answers = time.perf_counter() - begun, sorted(self._latencies)
        self._over = True
        while self._open:
            event = self._channel.next_call_event()
            event.tag(event)
        self._channel.close(cygrpc.StatusCode.cancelled, "over")
        at = lambda share: answers[min(len(answers) - 1, int(share * len(answers)))] if answers else 0.0  # noqa: E731
        return Heard(len(answers), self._errors, took, at(0.5), at(0.99))

    def _turn(self, until: float) -> None:
        next_event = self._channel.next_call_event
        while time.perf_counter() < until:
            event = next_event()
            event.tag(event)

    def _ask(self, _: int) -> None:
        if self._over:
            return
        self._open += 1
        begun = time.perf_counter()
        deadline = None if self._patience is None else time.time() + self._patience

        def ended(event: Any) -> bool:
            self._open -= 1
            if event.batch_operations[5].code() == cygrpc.StatusCode.ok:
                self._latencies.append(time.perf_counter() - begun)
            else:
                self._errors += 1
            self._ask(1)
            return True

        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(self._message, 0),
            cygrpc.SendCloseFromClientOperation(0),
            cygrpc.ReceiveInitialMetadataOperation(0),
            cygrpc.ReceiveMessageOperation(0),
            cygrpc.ReceiveStatusOnClientOperation(0),
        )
        self._channel.integrated_call(0, METHOD.encode(), None, deadline, None, None, ((operations, ended),), None)

    def _stream(self, in_flight: int) -> None:
        _Stream(self, in_flight)


class _Stream:
    """One stream with so many requests in flight."""

    def __init__(self, loop: Loop, in_flight: int) -> None:
        self._loop = loop
        self._begun: deque[float] = deque()
        self._unsent = in_flight
        self._sending = self._closing = False
        # One until the last message, one until the status: a channel closes only once all its events were taken.
        loop._open += 2
        self._call = loop._channel.integrated_call(
            0,
            STREAM.encode(),
            None,
            None,
            None,
            None,
            (
                ((cygrpc.SendInitialMetadataOperation(None, 0),), _ignored),
                ((cygrpc.ReceiveInitialMetadataOperation(0),), _ignored),
                ((cygrpc.ReceiveMessageOperation(0),), self._received),
                ((cygrpc.ReceiveStatusOnClientOperation(0),), self._ended),
            ),
            None,
        )
        self._send()

    def _send(self) -> None:
        if self._sending or self._closing:
            return
        if self._loop._over:
            self._closing = True
            self._call.operate((cygrpc.SendCloseFromClientOperation(0),), _ignored)
        elif self._unsent:
            self._unsent -= 1
            self._sending = True
            self._begun.append(time.perf_counter())
            self._call.operate((cygrpc.SendMessageOperation(self._loop._message, 0),), self._sent)

    def _sent(self, _: Any) -> bool:
        self._sending = False
        self._send()
        return False

    def _received(self, event: Any) -> bool:
        if event.batch_operations[0].message() is None:
            self._loop._open -= 1
            return True
        self._loop._latencies.append(time.perf_counter() - self._begun.popleft())
        self._unsent += 1
        self._send()
        self._call.operate((cygrpc.ReceiveMessageOperation(0),), self._received)
        return False

    def _ended(self, event: Any) -> bool:
        self._loop._open -= 1
        self._loop._errors += event.batch_operations[0].code() != cygrpc.StatusCode.ok
        return True


def _ignored(_: Any) -> bool:
    return False


def main() -> int:
    """Run one closed loop and print what it heard."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lean_client", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("target")
    parser.add_argument("--request", type=Path, required=True, help="file with the bytes of the message")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--streams", type=int, default=0, help="0: unary calls")
    parser.add_argument("--warm-up", type=float, default=0.3)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    loop = Loop(given.target, given.request.read_bytes())
    print(json.dumps(asdict(loop.run(given.in_flight, given.streams, given.warm_up, given.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
