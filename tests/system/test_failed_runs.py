"""A failed request affects nothing else: not the next requests, not concurrent ones, not the model's readiness."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from tests import models
from tests.system import failing_models
from tests.system.daemon import Daemon
from tests.system.failing_models import KINDS, Inputs, Kind
from tests.system.wire import OK, connect, method, outcome, request

pytestmark = pytest.mark.system

# Those whose failures are only seen while they run, on so many streams each.
STREAMS = {f"{name}_{n}": (name, n) for name in ("wrong_width", "picked_fixed_rows", "chosen_shape") for n in (1, 2, 4)}
SERVED = {name: name for name in KINDS} | {served: name for served, (name, _) in STREAMS.items()}
AFTER = 120
AT_ONCE = 8


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = tmp_path_factory.mktemp("repository")
    for served, name in SERVED.items():
        # No made-up input picks three rows.
        settings = "[warmup]\nruns = 0\n" if name == "picked_fixed_rows" else ""
        settings += f"[execution]\nstreams = {STREAMS[served][1]}\n" if served in STREAMS else ""
        models.save(KINDS[name]().network, repository, served, settings=settings)
    models.save(failing_models.long_or_short(), repository, "long_or_short")
    with Daemon(repository, "--cache-dir", str(cache_dir), "--preflight", "off") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


class Client:
    """Sends a kind's inputs to ``model``, and holds the good answers against what they should be."""

    def __init__(self, channel: Any, model: str, kind: Kind) -> None:
        self._infer = method(channel, "ModelInfer")
        self._model = model
        self._kind = kind
        self._answers = kind.answers()
        self.refused: Counter[StatusCode] = Counter()

    async def good(self, number: int) -> None:
        which = number % len(self._kind.good)
        call = self._infer(request(self._model, self._kind.good[which]))
        assert await outcome(call) == (OK, ""), f"good input {which} of {self._model}, request {number}"
        self._compare(await call, which)

    async def bad(self, number: int) -> None:
        inputs = self._kind.bad[number % len(self._kind.bad)]
        code, said = await outcome(self._infer(request(self._model, inputs)))
        assert code is not OK
        assert self._model in said
        if self._kind.by_shape:
            assert all(str(list(x.shape)) in said for x in inputs.values()), said
        self.refused[code] += 1

    def _compare(self, answer: pb.ModelInferResponse, which: int) -> None:
        expected = self._answers[which]
        assert list(answer.outputs[0].shape) == list(expected.shape)
        seen = np.frombuffer(answer.raw_output_contents[0], expected.dtype).reshape(expected.shape)
        np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("served", SERVED)
def test_no_good_request_fails_of_a_bad_one(daemon: Daemon, served: str) -> None:
    kind = KINDS[SERVED[served]]()

    async def talk() -> Counter[StatusCode]:
        async with connect(daemon.grpc) as channel:
            client = Client(channel, served, kind)
            # A bad one first, then bad ones between good ones, then concurrent with them.
            await client.bad(0)
            for number in range(6):
                await client.good(number)
                await client.bad(number)
            mixed = [client.bad(n) if n % 10 == 0 else client.good(n) for n in range(AFTER)]
            for at in range(0, len(mixed), AT_ONCE):
                await asyncio.gather(*mixed[at : at + AT_ONCE])
            for at in range(0, AFTER, AT_ONCE):
                await asyncio.gather(*(client.good(n) for n in range(at, at + AT_ONCE)))
            ready = await method(channel, "ModelReady")(pb.ModelReadyRequest(name=served))
            assert ready.ready
            return client.refused

    refused = asyncio.run(talk())
    assert set(refused) == {StatusCode.INVALID_ARGUMENT if kind.by_shape else StatusCode.INTERNAL}


def test_none_of_them_made_a_model_unready(daemon: Daemon) -> None:
    assert daemon.events("model failed") == []
    assert daemon.events("device disabled") == []


def test_a_run_that_its_client_gave_up_does_not_change_the_next_answer(daemon: Daemon) -> None:
    small: Inputs = {"x": np.arange(3 * 256, dtype=np.float32).reshape(3, 256)}
    large: Inputs = {"x": np.ones((4000, 256), np.float32)}

    async def talk() -> None:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            for timeout in (0.02, 0.1, 0.3):
                await infer(request("long_or_short", small))
                code = await infer(request("long_or_short", large), timeout=timeout).code()
                assert code is StatusCode.DEADLINE_EXCEEDED
                for _ in range(4):
                    answer = await infer(request("long_or_short", small))
                    assert list(answer.outputs[0].shape) == [3, 256]
                    assert answer.raw_output_contents[0] == small["x"].tobytes()

    asyncio.run(talk())
