"""Every client gets its own responses, however many send at once."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd.tensors import DType
from tests import models
from tests.conftest import ROOT
from tests.effort import examples
from tests.system import echo_client
from tests.system.daemon import Daemon
from tests.system.wire import counts

pytestmark = pytest.mark.system

CLIENTS = 8
REQUESTS = examples(10_000)


def test_eight_processes_get_their_answers_and_each_its_own(
    tmp_path: Path, cache_dir: Path, figure: Callable[[str], None]
) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo", settings="[execution]\ninfer_requests = 4")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir)) as daemon:
        begun = time.monotonic()
        # Half of them send one call a request, half of them all requests on one stream.
        clients = [
            subprocess.Popen(
                [sys.executable, "-m", echo_client.__name__, daemon.grpc, str(number), str(REQUESTS), kind],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            for number, kind in zip(range(CLIENTS), ["unary", "stream"] * (CLIENTS // 2), strict=True)
        ]
        tallies = [json.loads(client.communicate()[0]) for client in clients]
        seconds = time.monotonic() - begun
        counted = counts(daemon)
    assert tallies == [{"answered": REQUESTS, "mixed_up": 0}] * CLIENTS
    assert counted == {("echo", "ok"): CLIENTS * REQUESTS}
    figure(f"echo: {CLIENTS * REQUESTS} answers to {CLIENTS} processes in {seconds:.1f} s, none mixed up")
