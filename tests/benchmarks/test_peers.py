import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmarks.peers import benchmark_app, clients
from benchmarks.peers.environments import HERE, NotInstalled, floor_program
from benchmarks.peers.processes import serving_cpu_seconds, thread_cpu_seconds
from benchmarks.peers.report import BEGIN, END, NAMES, between_marks, markdown, spread
from benchmarks.peers.results import (
    BENCHMARK_APP,
    BENCHMARK_APP_DEFAULTS,
    COMPUTING_ECHO,
    ECHO,
    FLOOR,
    INFERD,
    INFERD_MAPPED,
    SHARED_MEMORY,
    STREAM,
    STREAMED_SHARED_MEMORY,
    UNARY,
    Bar,
    Result,
    Results,
    Spread,
    Subject,
    bars,
    difference,
    ratio,
    shares,
)
from benchmarks.peers.servers import KINDS, TRITON_CONFIGURATIONS
from benchmarks.peers.workloads import Workload
from hypothesis import given
from hypothesis import strategies as st

from inferd.tensors import DType
from tests import models
from tests.event_loop import on_loop

OWN, PEER, OTHER = Subject(INFERD, UNARY), Subject("mlserver", UNARY), Subject("litserve", "HTTP")
APP = Subject(BENCHMARK_APP, "async")
RUN = {
    "measured": "2026-01-01",
    "rounds": 2,
    "seconds": 2.0,
    "threads": 2,
    "versions": {"inferd": "1"},
    "missing": {"Ray Serve": "no wheel | for this platform"},
    "sizes": {"noop": {"request": 1000, "answer": 16}, "resnet50": {"request": 602_156, "answer": 4000}},
}


def result(subject: Subject, number: int = 0, model: str = "noop", concurrency: int = 8, **figures: object) -> Result:
    known: dict[str, object] = {
        "throughput": 100.0,
        "p50": 0.001,
        "p99": 0.002,
        "server_cpu": 0.001,
        "client_cpu": 0.0001,
        "foreign": 0.0,
    }
    return Result(number, model, subject.server, subject.way, concurrency, **(known | figures))  # type: ignore[arg-type]


def test_a_spread_is_the_median_the_least_and_the_most() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    assert Spread.of([]) is None


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was half as fast in the second round: the ratio is the same.
    assert ratio({0: 200.0, 1: 100.0}, {0: 100.0, 1: 50.0}) == Spread(2.0, 2.0, 2.0)


def test_rounds_that_lack_either_side_or_divide_by_nothing_are_left_out() -> None:
    assert ratio({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 2: 0.0}) == Spread(0.5, 0.5, 0.5)
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert difference({0: 3.0, 1: 1.0}, {0: 1.0}) == {0: 2.0}


def test_the_best_is_the_most_at_any_concurrency_of_each_round() -> None:
    results = Results(
        [
            result(OWN, 0, concurrency=1, throughput=10.0),
            result(OWN, 0, concurrency=8, throughput=30.0),
            result(OWN, 0, concurrency=32, throughput=20.0),
            result(OWN, 1, concurrency=1, throughput=40.0),
            result(OWN, 1, concurrency=8, throughput=25.0),
        ]
    )

    assert results.best("noop", OWN) == {0: 30.0, 1: 40.0}


def test_the_objective_is_three_times_what_the_best_peer_takes_alone() -> None:
    results = Results(
        [
            result(OWN, concurrency=1, p50=0.001),
            result(PEER, 0, concurrency=1, p50=0.002),
            result(PEER, 1, concurrency=1, p50=0.004),
            result(OTHER, concurrency=1, p50=0.005),
            result(Subject(ECHO, UNARY), concurrency=1, p50=0.0001),
        ]
    )

    assert results.objective("noop") == pytest.approx(0.009)


def test_without_peers_the_objective_is_by_inferd() -> None:
    assert Results([result(OWN, concurrency=1, p50=0.001)]).objective("noop") == pytest.approx(0.003)
    assert Results([result(OWN, concurrency=8)]).objective("noop") is None


def test_what_the_client_took_of_the_cpus_is_given_back() -> None:
    looks = (
        result(OWN, 0, concurrency=8, throughput=30.0, server_cpu=0.02, client_cpu=0.01),
        result(OWN, 0, concurrency=32, throughput=40.0, server_cpu=0.02, client_cpu=0.0),
        result(OWN, 1, concurrency=8, throughput=20.0, server_cpu=None, client_cpu=0.01),
    )
    assert Results(looks).served("noop", OWN) == {0: pytest.approx(45.0), 1: 20.0}


def test_goodput_is_the_most_throughput_whose_p99_keeps_the_objective() -> None:
    results = Results(
        [
            result(PEER, concurrency=1, p50=0.001, p99=0.002, throughput=10.0),
            result(PEER, concurrency=8, p99=0.003, throughput=50.0),
            result(PEER, concurrency=32, p99=0.004, throughput=90.0),
            result(OTHER, concurrency=1, p50=0.009, p99=0.010),
            result(OWN, concurrency=8, p99=0.001, throughput=200.0, errors=1),
            result(Subject(INFERD_MAPPED, SHARED_MEMORY), concurrency=8, p99=0.001, throughput=300.0),
        ]
    )

    assert results.goodput("noop", PEER) == {0: 50.0}
    assert results.goodput("noop", OTHER) == {0: 0.0}
    assert results.goodput("noop", OWN) == {0: 0.0}
    assert results.best_peer("noop", results.goodput) == PEER


def test_what_computes_nothing_or_answers_no_client_keeps_no_objective() -> None:
    results = Results([result(PEER, concurrency=1), result(APP), result(Subject(ECHO, UNARY))])

    assert results.goodput("noop", APP) == {}
    assert results.goodput("noop", Subject(ECHO, UNARY)) == {}


def test_the_floor_and_benchmark_app_at_its_defaults_are_no_peers() -> None:
    floor, defaults = Subject(FLOOR, UNARY), Subject(BENCHMARK_APP_DEFAULTS, "async")
    results = Results(
        [
            result(PEER, concurrency=1, p50=0.002),
            result(floor, concurrency=1, p50=0.0001),
            result(defaults, concurrency=1, p50=0.0001),
        ]
    )

    assert results.objective("noop") == pytest.approx(0.006)
    assert results.best_peer("noop", results.best) == PEER
    assert results.goodput("noop", floor) == {0: 100.0}
    assert results.goodput("noop", defaults) == {}


def test_costs_are_compared_under_the_same_load_and_benchmark_app_at_its_own() -> None:
    results = Results(
        [
            result(OWN, concurrency=1, server_cpu=0.009),
            result(OWN, concurrency=8, server_cpu=0.003),
            result(OWN, concurrency=32, server_cpu=0.001),
            result(APP, concurrency=1, server_cpu=0.009),
            result(APP, concurrency=2, server_cpu=0.002),
        ]
    )

    assert ratio(results.cost("noop", OWN), results.cost("noop", APP)) == Spread(1.5, 1.5, 1.5)


def test_serving_a_model_costs_what_its_inference_does_not() -> None:
    results = Results(
        [
            result(OWN, model="magika", server_cpu=0.005),
            result(Subject(INFERD, STREAM), model="magika", server_cpu=0.0025),
            result(Subject(ECHO, UNARY), model="magika", server_cpu=0.002),
            result(APP, model="magika", concurrency=2, server_cpu=0.001),
        ]
    )

    found = {bar.text: bar for bar in bars(results)}

    serving = found["magika: server CPU an RPC minus benchmark_app's an inference, relative to a bare echo"]
    streamed = found["magika: server CPU an RPC minus benchmark_app's an inference, stream relative to unary"]
    assert serving.figure is not None
    assert serving.figure.middle == pytest.approx(2.0)
    assert serving.met is False
    assert streamed.figure is not None
    assert streamed.figure.middle == pytest.approx(0.375)
    assert streamed.met is True


def told_apart(subject: Subject, model: str = "magika", serving: float = 0.001, **figures: object) -> list[Result]:
    """One request alone, and under load, where serving threads took ``serving`` seconds of 10 ms."""
    loaded = result(subject, model=model, server_cpu=0.010, serving_cpu=serving, **figures)
    return [result(subject, model=model, concurrency=1, p50=0.009), loaded]


def test_the_serving_of_a_model_is_compared_by_its_threads() -> None:
    results = Results(
        [
            *told_apart(OWN, serving=0.003),
            *told_apart(Subject(INFERD, STREAM), serving=0.0015),
            *told_apart(Subject(COMPUTING_ECHO, UNARY), serving=0.0015),
        ]
    )

    found = {bar.text: bar for bar in bars(results)}

    of_echo = found["magika: CPU of serving threads an RPC, relative to the computing echo"]
    streamed = found["magika: CPU of serving threads an RPC, stream relative to unary"]
    assert (of_echo.figure, of_echo.met) == (Spread(2.0, 2.0, 2.0), False)
    assert (streamed.figure, streamed.met) == (Spread(0.5, 0.5, 0.5), True)
    assert not any("serving threads" in bar.text for bar in bars(Results([result(OWN, serving_cpu=0.001)])))


def test_the_latency_over_a_stream_in_shared_memory_is_the_mapped_ones() -> None:
    mapped = Subject(INFERD_MAPPED, STREAMED_SHARED_MEMORY)
    alone = [result(mapped, model="resnet50", concurrency=1, p50=0.0205), result(APP, concurrency=1, model="resnet50")]

    found = {bar.text: bar.figure for bar in bars(Results(alone))}

    later = found["resnet50: ms above benchmark_app's latency, one in flight over a stream, shared memory"]
    assert later is not None
    assert later.middle == pytest.approx(19.5)


def test_shares_say_where_cpu_and_latency_go() -> None:
    mapped = Subject(INFERD_MAPPED, STREAMED_SHARED_MEMORY)
    results = Results(
        [
            *told_apart(OWN, serving=0.002),
            *told_apart(mapped, serving=0.001),
            *told_apart(Subject(COMPUTING_ECHO, UNARY), serving=0.001),
            *told_apart(Subject(COMPUTING_ECHO, STREAM), serving=0.0005),
            result(APP, model="magika", concurrency=1, p50=0.007),
            result(APP, model="magika", concurrency=2, server_cpu=0.004),
        ]
    )

    found = {share.subject: share for share in shares(results)}

    assert list(found) == [OWN, mapped, Subject(COMPUTING_ECHO, UNARY), Subject(COMPUTING_ECHO, STREAM)]
    own = found[OWN]
    assert own.computing is not None
    assert own.computing.middle == pytest.approx(2.0)
    assert own.serving == Spread(0.002, 0.002, 0.002)
    assert own.of_echo == Spread(2.0, 2.0, 2.0)
    assert own.later is not None
    assert own.later.middle == pytest.approx(0.002)
    # What is asked over a stream is compared with the echo that is.
    assert found[mapped].of_echo == Spread(2.0, 2.0, 2.0)


def test_what_serving_costs_an_inference_is_also_told_by_the_servers_own_computing_threads() -> None:
    results = Results([*told_apart(OWN, model="squeezenet", serving=0.002), result(APP, model="squeezenet")])

    found = {bar.text: bar.figure for bar in bars(results)}

    own = found["squeezenet: server CPU an inference relative to its own computing threads, TCP"]
    assert own is not None
    assert own.middle == pytest.approx(1.25)


def test_shares_are_of_models_that_compute_and_of_threads_that_were_told_apart() -> None:
    results = Results(
        [
            result(OWN, serving_cpu=0.001),
            result(PEER, model="magika"),
            *told_apart(Subject(ECHO, UNARY)),
            *told_apart(OWN, model="resnet50"),
        ]
    )

    assert [(share.model, share.subject) for share in shares(results)] == [("resnet50", OWN)]
    assert shares(results)[0].computing is None


@pytest.mark.parametrize(
    ("limit", "floor", "met"), [(0.9, True, True), (0.96, True, False), (0.96, False, True), (0.9, False, False)]
)
def test_a_bar_is_judged_by_its_median(limit: float, floor: bool, met: bool) -> None:
    assert Bar("", limit, floor, Spread(0.95, 0.1, 9.0)).met is met


def test_a_bar_that_was_not_measured_is_neither_met_nor_missed() -> None:
    found = {bar.text: bar.met for bar in bars(Results([result(OWN, model="resnet50")]))}

    assert found["resnet50: throughput relative to benchmark_app, the client's CPU given back, TCP"] is None
    assert (
        found["resnet50: throughput relative to benchmark_app, the client's CPU given back, mapped shared memory"]
        is None
    )


def test_the_tables_have_a_row_for_everyone_and_say_who_is_missing() -> None:
    results = Results(
        [
            result(OWN, concurrency=1, throughput=100.0, p50=0.0005),
            result(OWN, concurrency=8, throughput=3000.0, server_cpu=0.0002),
            result(PEER, concurrency=1, throughput=50.0, p50=0.001),
            result(PEER, concurrency=8, throughput=1000.0, errors=3, error="UNAVAILABLE: gone"),
        ]
    )

    text = markdown(results, RUN)

    lines = text.splitlines()
    own = next(line for line in lines if line.startswith("| inferd, unary"))
    peer = next(line for line in lines if line.startswith("| MLServer, unary"))
    assert "3,000 (3,000–3,000)" in own
    assert "| 3.00 (3.00–3.00) |" in peer
    assert peer.endswith("| 3 |")
    assert "| Ray Serve | no wheel \\| for this platform |" in lines
    widths = {line.count(" | ") for line in lines if line.startswith(("| inferd, ", "| MLServer, "))}
    assert len(widths) == 1


def test_every_server_has_a_name_in_the_tables() -> None:
    assert {kind.name for kind in KINDS} | {BENCHMARK_APP, BENCHMARK_APP_DEFAULTS} == set(NAMES)


def test_the_best_configurations_are_told_where_a_server_has_several() -> None:
    run = RUN | {"configurations": {"Triton": "noop: both"}}

    assert "| Triton | noop: both |" in markdown(Results([result(OWN)]), run).splitlines()
    assert "### Configurations" not in markdown(Results([result(OWN)]), RUN)


def test_where_it_goes_follows_what_is_promised() -> None:
    text = markdown(Results(told_apart(OWN, model="resnet50", serving=0.00025)), RUN)

    promised, where, model = (text.index(f"### {title}") for title in ("Targets", "Where it goes", "resnet50"))
    assert promised < where < model
    assert "| resnet50 | inferd, unary | – | 250 (250–250) | – | – |" in text[where:model].splitlines()
    assert "### Where it goes" not in markdown(Results([result(OWN)]), RUN)


def test_figures_are_written_with_three_digits() -> None:
    assert spread(Spread(1234.5, 12.345, 0.1234)) == "1,234 (12.3–0.12)"
    assert spread(Spread(0.0, 0.0, 0.0)) == "0 (0–0)"
    assert spread(None) == "–"


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    once = between_marks(page, "new")

    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert between_marks(once, "new") == once
    with pytest.raises(ValueError, match="lacks"):
        between_marks("no marks", "new")


# -- threads ----------------------------------------------------------------------


def test_the_busiest_threads_compute_but_no_main_one() -> None:
    before = {(7, 7): 1.0, (7, 8): 5.0, (7, 9): 2.0, (7, 10): 0.5, (7, 11): 3.0}
    # 11 has ended, 12 has come.
    after = {(7, 7): 9.0, (7, 8): 5.25, (7, 9): 4.0, (7, 10): 2.0, (7, 12): 0.125}

    assert serving_cpu_seconds(before, after, 2) == 8.0 + 0.25 + 0.125
    assert serving_cpu_seconds(before, after, 0) == 8.0 + 0.25 + 2.0 + 1.5 + 0.125


@given(st.dictionaries(st.tuples(st.integers(1, 3), st.integers(1, 9)), st.integers(0, 1000)), st.integers(0, 9))
def test_what_computes_is_never_less_than_any_that_serves(took: dict[tuple[int, int], int], computing: int) -> None:
    serving = serving_cpu_seconds({}, took, computing)

    main = sum(seconds for (pid, thread), seconds in took.items() if pid == thread)
    rest = sorted(seconds for (pid, thread), seconds in took.items() if pid != thread)
    assert serving == main + sum(rest[: max(0, len(rest) - computing)])


def test_every_thread_of_a_process_is_seen_until_it_ends() -> None:
    seen, asked = threading.Event(), threading.Event()

    def compute() -> None:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.05:
            pass
        seen.set()
        asked.wait()

    thread = threading.Thread(target=compute)
    thread.start()
    seen.wait()
    alive = thread_cpu_seconds([os.getpid()])
    asked.set()
    thread.join()

    assert alive[os.getpid(), os.getpid()] > 0
    # The kernel counts what is running now only from time to time, and perhaps in steps of ticks.
    assert alive[os.getpid(), thread.native_id or 0] > 0
    assert thread_cpu_seconds([_ended()]) == {}


def _ended() -> int:
    """The id of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


# -- what is started --------------------------------------------------------------


def test_benchmark_app_runs_at_the_precision_of_servers_or_as_it_likes() -> None:
    same = benchmark_app.command(WORKLOAD, 2, False, 2.0)
    own = benchmark_app.default_command(WORKLOAD, False, 2.0)

    assert same[same.index("-infer_precision") + 1] == "f32"
    assert not {"-infer_precision", "-nstreams", "-nthreads", "-hint", "-ip"} & set(own)


def test_without_a_compiler_the_floor_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(NotInstalled, match=r"lacks a C\+\+ compiler"):
        floor_program(tmp_path, print)


@pytest.mark.parametrize("choice", TRITON_CONFIGURATIONS)
def test_triton_gets_a_process_for_each_thread_or_one_of_all(choice: str, tmp_path: Path) -> None:
    models.save(models.identity(DType.FP32, [1, 4]), tmp_path, "noop")
    file = str(tmp_path / "noop" / "1" / "model.xml")

    text = _triton().configuration("noop", file, choice, 2)

    one, batches = choice == "batches", choice != "instances"
    assert f"kind: KIND_CPU count: {1 if one else 2} " in text
    assert f'key: "streams" value {{ string_value: "{2 if one else 1}" }}' in text
    assert ("dynamic_batching" in text) is batches
    assert ("dims: [4]" if batches else "dims: [1, 4]") in text


def _triton() -> ModuleType:
    """triton/server.py, which stands alone: its environment is Triton's."""
    spec = spec_from_file_location("triton_server", HERE / "triton" / "server.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.path.insert(0, str(HERE / "runtime"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(HERE / "runtime"))
    return module


# -- the HTTP client, which is our own ---------------------------------------------


WORKLOAD = Workload("noop", Path("noop"), "x", "y", np.zeros(4, np.float32), np.zeros(4, np.float32), b"", b"\0" * 16)


@asynccontextmanager
async def server(*pieces: bytes) -> AsyncIterator[str]:
    """Answers each request of WORKLOAD with ``pieces``, one write each; its address."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST /noop HTTP/1.1\r\n")
                assert await reader.readexactly(16) == WORKLOAD.body
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.create_task(serve(reader, writer)))

    running = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{running.sockets[0].getsockname()[1]}"
    finally:
        running.close()
        await asyncio.gather(*serving)


@on_loop
async def test_an_http_answer_is_put_together_of_its_pieces() -> None:
    async with (
        server(b"HTTP/1.1 200 OK\r\nContent-", b"Length: 6\r\n\r\nab", b"cdef") as address,
        clients.http(address, WORKLOAD, 1) as (ask,),
    ):
        assert [await ask() for _ in range(3)] == [b"abcdef"] * 3


@on_loop
async def test_an_http_error_is_told_and_the_connection_goes_on() -> None:
    async with (
        server(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy") as address,
        clients.http(address, WORKLOAD, 1) as (ask,),
    ):
        for _ in range(2):
            with pytest.raises(clients.Refused, match="503 Service Unavailable: b'busy'"):
                await ask()


@on_loop
async def test_a_closed_loop_counts_what_is_answered_while_its_window_is_open() -> None:
    edges: list[int] = []
    answered = 0

    async def lane() -> bytes:
        nonlocal answered
        await asyncio.sleep(0.001)
        answered += 1
        return b""

    heard = await clients.closed_loop([lane, lane], 0.02, 0.05, lambda: edges.append(answered))

    assert len(heard.latencies) == edges[1] - edges[0]
