"""Runs the daemon and records when it sees requests whose id says when they were sent.

    python -m benchmarks.arrival_times FILE python -m inferd serve ...

Such an id is :data:`STAMPED` and nanoseconds of the monotonic clock, which all processes of a machine share. When the
daemon ends, FILE gets a JSON list of [sent, seen, the wait that the daemon estimated].
"""

import json
import sys
import time
from pathlib import Path

from inferd.cli.main import main
from inferd.rpc import inference
from inferd.rpc.call import CallContext, InferCall, Recipient, Wrap

STAMPED = "sent at "


def run() -> int:
    """The exit status of the daemon."""
    file, arguments = Path(sys.argv[1]), sys.argv[5:]
    noted: list[tuple[int, int, int]] = []
    begin = inference.Inference.begin

    def stamped(
        self: inference.Inference, raw: bytes, wrap: Wrap, call_context: CallContext, recipient: Recipient
    ) -> InferCall:
        seen = time.monotonic_ns()
        call = begin(self, raw, wrap, call_context, recipient)
        if call.id.startswith(STAMPED):
            noted.append((int(call.id.removeprefix(STAMPED)), seen, call.stages.waited))
        return call

    inference.Inference.begin = stamped  # type: ignore[method-assign]
    sys.argv = ["inferd", *arguments]
    try:
        return main()
    finally:
        file.write_text(json.dumps(noted))


if __name__ == "__main__":
    sys.exit(run())
