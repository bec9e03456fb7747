"""`inferd bench` against the real daemon: what it counts is what the daemon did."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferd.bench.inputs import given_inputs
from inferd.bench.latencies import Latencies
from inferd.bench.load import Open
from inferd.load_generator.server_probe import MetricsPage, ProcessTree, ServerProbe
from inferd.load_generator.shared_regions import shared
from inferd.rpc.client import InferenceClient
from inferd.security.client_credentials import NO_CREDENTIALS
from inferd.tensors import DType, TensorSpec
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import counts

pytestmark = pytest.mark.system

SHORT = ("--seconds", "300ms", "--warm-up", "100ms")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = echo_models.write(tmp_path_factory.mktemp("bench-models"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--shared-memory", "copy") as running:
        yield running
    assert running.stop() == 0, running.log()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "inferd", "bench", *arguments]


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
    return subprocess.run(command(*arguments), check=False, capture_output=True, text=True, timeout=120, env=inherited)


def measured(daemon: Daemon, file: Path, model: str, *flags: str) -> Any:
    """The document of a run that did what it should."""
    done = bench("run", model, "--server", daemon.grpc, "--json", str(file), *SHORT, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return json.loads(file.read_text())


def succeeded(daemon: Daemon, model: str) -> int:
    return counts(daemon).get((model, "ok"), 0)


def test_a_closed_loop_counts_no_more_than_the_daemon_did(daemon: Daemon, tmp_path: Path) -> None:
    before = succeeded(daemon, "echo")
    flags = ("--concurrency", "1,3", "--processes", "2", "--plot", str(tmp_path / "a.png"))
    done = bench("run", "echo", "--server", daemon.grpc, "--json", str(tmp_path / "a.json"), *SHORT, *flags)
    after = succeeded(daemon, "echo")
    said = json.loads((tmp_path / "a.json").read_text())
    assert [step["load"] for step in said["steps"]] == [{"kind": "closed", "concurrency": n} for n in (1, 3)]
    assert [step["errors"] for step in said["steps"]] == [{}, {}], done.stdout
    assert sum(step["due"] for step in said["steps"]) <= after - before
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_document_says_how_every_request_of_two_processes_went(daemon: Daemon, tmp_path: Path) -> None:
    flags = ("--rate", "50,100", "--processes", "2", "--objective", "1m", "--seed", "3")
    said = measured(daemon, tmp_path / "a.json", "echo", *flags, "--metrics-url", f"http://{daemon.metrics}/metrics")
    assert [step["load"]["rate"] for step in said["steps"]] == [50, 100]
    for place, step in enumerate(said["steps"]):
        # A tenth of a second of warm-up before those that count.
        due = Open(step["load"]["rate"], "poisson").due(0.4, 3 + place)
        assert step["window"]["codes"] == {"OK": int((due >= 100_000_000).sum())}
        assert (step["met"], step["share_in_time"], step["errors"]) == (True, 1.0, {})
        latency = step["latency"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
        histogram = Latencies(**step["window"]["latencies"])
        assert histogram.count == step["due"]
        assert histogram.quantile(99) == latency["p99"]
        assert step["server"]["rss_bytes"] > 1_000_000


def test_what_the_server_says_of_itself_is_what_it_did(daemon: Daemon) -> None:
    with InferenceClient(daemon.grpc) as client:
        probes = [
            ServerProbe(client, "echo", "", resources=source)
            for source in (
                MetricsPage(f"http://{daemon.metrics}/metrics", NO_CREDENTIALS),
                ProcessTree(daemon.process.pid),
            )
        ]
        before = [probe.sample() for probe in probes]
        for _ in range(5):
            client.infer("echo", {"x": np.arange(3)})
        after = [probe.sample() for probe in probes]
    for was, now in zip(before, after, strict=True):
        assert was.counted is not None
        assert now.counted is not None
        assert now.counted.succeeded[0] - was.counted.succeeded[0] == 5
        assert {name: count - was.counted.stages[name][0] for name, (count, _) in now.counted.stages.items()} == {
            "queue": 5,
            "compute_input": 5,
            "compute_infer": 5,
            "compute_output": 5,
        }
        assert was.resources is not None
        assert now.resources is not None
        assert now.resources.cpu_seconds >= was.resources.cpu_seconds > 0
        assert now.resources.rss_bytes > 1_000_000


@pytest.mark.parametrize("way", [(), ("--stream",)], ids=["unary", "stream"])
def test_an_open_loop_sends_all_that_was_due(daemon: Daemon, tmp_path: Path, way: tuple[str, ...]) -> None:
    flags = ("--rate", "100", "--arrivals", "constant", "--input", str(tmp_path / "in.npz"), *way)
    np.savez(tmp_path / "in.npz", x=np.arange(5))
    before = succeeded(daemon, "echo")
    said = measured(daemon, tmp_path / "a.json", "echo", *flags)
    (step,) = said["steps"]
    assert step["load"] == {"kind": "open", "rate": 100.0, "arrivals": "constant"}
    assert said["inputs"] == "x INT64 [5]"
    # A tenth of a second of warm-up, and three tenths that count; one request asks what the answer looks like.
    assert step["due"] == 30
    assert succeeded(daemon, "echo") - before == 41
    assert step["window"]["codes"] == {"OK": 30}
    assert step["window"]["lags"]["count"] == 30


@pytest.mark.parametrize("way", [("--processes", "2"), ("--stream",)], ids=["unary", "stream"])
def test_tensors_pass_through_shared_memory(daemon: Daemon, tmp_path: Path, way: tuple[str, ...]) -> None:
    shapes = ("--shape", "left=2,2", "--shape", "right=2,2")
    flags = ("--shared-memory", *shapes, "--rate", "100", "--arrivals", "constant", *way)
    said = measured(daemon, tmp_path / "a.json", "rows", *flags)
    (step,) = said["steps"]
    assert said["way"].endswith("shared memory")
    assert step["window"]["codes"] == {"OK": 30}
    with InferenceClient(daemon.grpc) as client:
        assert client.regions() == ()


def test_shared_memory_is_there_for_as_long_as_requests_refer_to_it(daemon: Daemon) -> None:
    feeds = given_inputs("echo", (TensorSpec("x", DType.INT64, None),), {"x": np.arange(4)})
    with InferenceClient(daemon.grpc) as client:
        with shared(client, "echo", "", feeds, [("x", 32)], slots=2) as requests:
            names = client.regions()
            assert len(names) == 2
            output = requests[1].outputs[0].parameters
            memory = SharedMemory(output["shared_memory_region"].string_param)
            client.ask(requests[1])
            place = output["shared_memory_offset"].int64_param
            assert bytes(memory.buf[place : place + 32]) == feeds[0].data
            # The other's place is its own.
            assert bytes(memory.buf[:32]) == bytes(32)
            memory.close()
        assert client.regions() == ()
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def test_a_rate_beyond_capacity_is_told_by_latency_from_when_requests_were_due(daemon: Daemon, tmp_path: Path) -> None:
    # One runs at a time, for some milliseconds, and forty are due within eight.
    np.savez(tmp_path / "in.npz", steps=np.array(20, np.int32))
    flags = ("--rate", "5000", "--arrivals", "constant", "--seconds", "8ms", "--warm-up", "0s")
    done = bench(
        *("run", "steps", "--server", daemon.grpc, "--json", str(tmp_path / "a.json")),
        *("--input", str(tmp_path / "in.npz"), "--objective", "1us", *flags),
    )
    (step,) = json.loads((tmp_path / "a.json").read_text())["steps"]
    assert step["window"]["codes"] == {"OK": 40}, done.stdout + done.stderr
    with InferenceClient(daemon.grpc) as client:
        (said,) = client.model_statistics("steps").model_stats
    run = said.inference_stats.compute_infer
    # On average twenty were before each, all of which it waited for, whenever it was sent.
    assert step["latency"]["mean"] > 5 * run.ns / run.count / 1e9
    assert step["met"] is False


def test_errors_are_told_by_their_code(daemon: Daemon, tmp_path: Path) -> None:
    # Twenty milliseconds of work at least, for which there is one.
    np.savez(tmp_path / "in.npz", steps=np.array(100, np.int32))
    flags = ("--rate", "100", "--arrivals", "constant", "--deadline", "1ms", "--input", str(tmp_path / "in.npz"))
    done = bench("run", "steps", "--server", daemon.grpc, "--json", str(tmp_path / "a.json"), *flags, *SHORT)
    # Nothing was answered.
    assert (done.returncode, done.stderr) == (1, "")
    (step,) = json.loads((tmp_path / "a.json").read_text())["steps"]
    assert step["errors"] == step["window"]["codes"] == {"DEADLINE_EXCEEDED": 30}
    assert "100/s even: of 30 requests 30 DEADLINE_EXCEEDED\n" in done.stdout


def test_errors_in_a_stream_are_told_by_their_code(daemon: Daemon, tmp_path: Path) -> None:
    # One runs, for a tenth of a second at least, and one waits: of eight at once most are refused.
    np.savez(tmp_path / "in.npz", steps=np.array(500, np.int32))
    flags = ("--rate", "8000", "--arrivals", "constant", "--seconds", "1ms", "--warm-up", "0s", "--stream")
    done = bench(
        *("run", "busy", "--server", daemon.grpc, "--json", str(tmp_path / "a.json")),
        *("--input", str(tmp_path / "in.npz"), *flags),
    )
    (step,) = json.loads((tmp_path / "a.json").read_text())["steps"]
    assert set(step["window"]["codes"]) == {"OK", "RESOURCE_EXHAUSTED"}, done.stdout + done.stderr
    assert step["due"] == 8


def test_two_runs_can_be_compared(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    measured(daemon, file, "echo", "--rate", "100", "--pid", str(daemon.process.pid))
    done = bench("compare", str(file), str(file), "--plot", str(tmp_path / "both.svg"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "100/s" in done.stdout
    # A run is no different from itself: three latencies and memory at least.
    assert done.stdout.count("1.00x") >= 4
    assert (tmp_path / "both.svg").exists()


@pytest.mark.parametrize(
    ("model", "flags", "says"),
    [
        ("absent", (), "inferd: NOT_FOUND: unknown model 'absent'\n"),
        ("echo", ("--shape", "y=1"), "inferd: model 'echo': a shape is given for 'y', but there is no such input\n"),
        ("rows", ("--shape", "left=1,7"), "inferd: model 'rows': input 'left' is [?,2], but [1, 7] is given\n"),
        ("echo", ("--metrics-url", "http://127.0.0.1:1/metrics"), "inferd: http://127.0.0.1:1/metrics: "),
    ],
)
def test_what_can_not_be_measured_is_one_sentence(
    daemon: Daemon, model: str, flags: tuple[str, ...], says: str
) -> None:
    done = bench("run", model, "--server", daemon.grpc, *SHORT, *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_ctrl_c_shows_what_was_measured_so_far(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    flags = ("--concurrency", "1,2", "--warm-up", "0s", "--seconds", "1s", "--json", str(file))
    running = subprocess.Popen(
        command("run", "echo", "--server", daemon.grpc, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert running.stdout is not None
    while (line := running.stdout.readline()) and "2 in flight" not in line:
        pass
    # A terminal sends it to the client processes as well.
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "")
    said = json.loads(file.read_text())
    assert said["interrupted"] is True
    assert said["steps"][0]["load"]["concurrency"] == 1
    assert said["steps"][0]["seconds"] == 1.0
    assert "1 in flight" in out


def test_no_client_process_is_left_behind_when_its_owner_is_killed(daemon: Daemon) -> None:
    running = subprocess.Popen(
        command("run", "echo", "--server", daemon.grpc, "--seconds", "1m", "--warm-up", "0s"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "1 in flight...\n"
    running.kill()
    running.wait()
    # They hold the pipe's other end: it ends when the last of them has.
    assert running.stdout.read() == ""
    running.stdout.close()
