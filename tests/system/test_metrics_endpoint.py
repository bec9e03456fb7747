"""The HTTP side of a running daemon, from its first moment on, and the log that goes with it."""

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from inferd._pb import health_pb2
from inferd.metrics.instruments import STAGES
from inferd.tensors import DType
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.slow_start import Starting, starting
from tests.system.wire import OK, connect, counts, echo, method, outcome, request

pytestmark = pytest.mark.system

COUNTED = "inferd_(request|stage|inferences|batch_rows|received|sent|objective)"


def get(address: str, path: str, accept: str = "") -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


# -- before it is ready -----------------------------------------------------------


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Starting]:
    with starting(tmp_path_factory.mktemp("repository"), cache_dir) as found:
        yield found


def test_while_models_load_it_is_alive_and_not_ready(early: Starting) -> None:
    assert get(early.metrics, "/healthz")[::2] == (200, "ok\n")
    assert get(early.metrics, "/readyz")[::2] == (503, "starting\nslow 1: LOADING\n")
    samples = get(early.metrics, "/metrics")[2].splitlines()
    assert "inferd_ready 0.0" in samples
    assert 'inferd_model_ready{model="echo",version="1"} 1.0' in samples
    assert 'inferd_model_ready{model="slow",version="1"} 0.0' in samples


def test_while_models_load_clients_are_told_to_wait(early: Starting) -> None:
    async def ask() -> None:
        async with connect(early.grpc) as channel:
            assert not (await method(channel, "ServerReady")(b"")).ready
            assert await outcome(method(channel, "ModelInfer")(echo([1]))) == (
                StatusCode.UNAVAILABLE,
                "model 'echo' is loading: the server is starting",
            )
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert await check(b"") == health_pb2.HealthCheckResponse(status="NOT_SERVING").SerializeToString()

    asyncio.run(ask())


# -- when it is -------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = echo_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--request-log", "failed") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def infer(daemon: Daemon, *messages: object) -> list[StatusCode]:
    async def ask() -> list[StatusCode]:
        async with connect(daemon.grpc) as channel:
            return [await method(channel, "ModelInfer")(message).code() for message in messages]

    return asyncio.run(ask())


def test_once_ready_it_says_so_and_names_what_is_not(daemon: Daemon) -> None:
    status, _, body = get(daemon.metrics, "/readyz")
    assert (status, body.splitlines()[0]) == (200, "ready")
    assert [line.partition(":")[0] for line in body.splitlines()[1:]] == ["broken 1"]


def test_both_exposition_formats_parse_and_agree(daemon: Daemon) -> None:
    infer(daemon, echo([1]))
    text = get(daemon.metrics, "/metrics")
    assert text[:2] == (200, "text/plain; version=0.0.4; charset=utf-8")
    modern = get(daemon.metrics, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert modern[0] == 200
    assert modern[1].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert modern[2].endswith("# EOF\n")

    def ours(families: object) -> dict[str, float]:
        samples = {f"{s.name}{s.labels}": s.value for f in families for s in f.samples if s.name.startswith("inferd_")}
        # Of what goes on by itself, and says something else a moment later, that it is there.
        return {name: value if re.match(COUNTED, name) else 0 for name, value in samples.items()}

    assert ours(openmetrics(modern[2])) == ours(plain_text(text[2])) != {}


def test_a_request_is_counted_and_timed_under_its_model_and_outcome(daemon: Daemon) -> None:
    before = counts(daemon)
    assert infer(daemon, echo([1]), request("echo", {}), request("no such model", {}), request("broken", {})) == [
        OK,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.UNAVAILABLE,
    ]
    after = counts(daemon)
    assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)} == {
        ("echo", "ok"): 1,
        ("echo", "invalid"): 1,
        ("_OTHER", "not_found"): 1,
        ("broken", "unavailable"): 1,
    }
    samples = get(daemon.metrics, "/metrics")[2]
    assert f'inferd_request_duration_seconds_count{{model="echo",version="1"}} {after["echo", "ok"]}.0' in samples
    for labels in (
        'device="CPU",model="echo",outcome="ok",reason="",version="1"',
        'device="",model="echo",outcome="invalid",reason="",version="1"',
        'device="",model="_OTHER",outcome="not_found",reason="model",version=""',
        'device="",model="broken",outcome="unavailable",reason="model",version=""',
    ):
        assert f"inferd_requests_total{{{labels}}} " in samples


def test_a_clients_spelling_never_becomes_a_series(daemon: Daemon) -> None:
    infer(daemon, *(request(f"guess-{number}", {}) for number in range(100)))
    assert {model for model, _ in counts(daemon)} <= {"echo", "broken", "_OTHER"}
    assert "guess" not in get(daemon.metrics, "/metrics")[2]


@pytest.mark.parametrize("path", ["/index.html", "/metric", "/metrics/", "/../etc/passwd", "/READYZ"])
def test_any_other_path_says_which_there_are(daemon: Daemon, path: str) -> None:
    paths = "paths: /, /status.json, /metrics, /healthz, /readyz\n"
    assert get(daemon.metrics, path) == (404, "text/plain; charset=utf-8", paths)


def test_both_ports_may_be_of_ipv6(tmp_path: Path, cache_dir: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    flags = ("--cache-dir", str(cache_dir), "--grpc-bind", "[::1]:0", "--metrics-bind", "[::1]:0")
    with Daemon(tmp_path, *flags) as daemon:
        assert daemon.grpc.startswith("[::1]:")
        assert get(daemon.metrics, "/readyz")[::2] == (200, "ready\n")
        assert infer(daemon, echo([1])) == [OK]


# -- the log ----------------------------------------------------------------------

HOSTILE = 'x"}\n{"event": "ready", "level": "info"}\r\n\x1b[31m\u2028'


def test_no_client_can_write_a_line_of_its_own_into_the_log(daemon: Daemon) -> None:
    infer(
        daemon,
        request("echo", {}, HOSTILE),
        request(HOSTILE, {}),
        echo([1], parameters={HOSTILE: 1}),
        echo([1], HOSTILE),
    )
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.lines]
    assert [line["event"] for line in lines].count("ready") == 1
    assert all(value.isprintable() for line in lines for value in line.values() if isinstance(value, str))
    # The log has only requests that failed.
    failed = [line for line in lines if line["event"] == "request" and line["id"].startswith("x")]
    assert [line["outcome"] for line in failed] == ["invalid"]
    assert "ok" not in {line["outcome"] for line in lines if line["event"] == "request"}


@pytest.mark.parametrize("which", ["off", "all"])
def test_the_request_log_is_off_or_has_them_all(tmp_path: Path, cache_dir: Path, which: str) -> None:
    models.save(models.sum_and_difference([-1, 2]), tmp_path, "rows", settings="[batching]\nmax_size = 8")
    rows = np.ones((3, 2), np.float32)
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--request-log", which) as daemon:
        infer(daemon, request("rows", {"left": rows, "right": rows}, "the id"), request("rows", {}, "bad"))
        assert daemon.stop() == 0
    lines = daemon.events("request")
    if which == "off":
        assert lines == []
        return
    done, bad = lines
    assert (done["model"], done["version"], done["id"], done["outcome"]) == ("rows", "1", "the id", "ok")
    assert (done["device"], done["batch"]) == ("CPU", 3)
    assert "error" not in done
    stages = {stage: done[f"{stage}_ms"] for stage in STAGES}
    assert [stage for stage, spent in stages.items() if not spent] == ["batch"]
    assert sum(stages.values()) == pytest.approx(done["total_ms"], abs=0.01)
    assert (bad["id"], bad["outcome"], bad["error"]) == (
        "bad",
        "invalid",
        "model 'rows': input 'left' is missing; inputs: left, right",
    )
