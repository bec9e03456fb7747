"""Clients that name the same sequences: none reads, ends or crowds out what is another's, however it is known."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from tests.certificates import CertificateAuthority
from tests.system import state_models, wire
from tests.system.daemon import Daemon
from tests.system.state_models import add, first, work
from tests.system.wire import OK, connect, method

pytestmark = pytest.mark.system

Metadata = tuple[tuple[str, str], ...]
Outcome = float | tuple[StatusCode, str]
# What adds a number to a sequence of a model: the first keeps its state itself, the server carries the other's.
KINDS: dict[str, Callable[..., pb.ModelInferRequest]] = {"inner": add, "steps": work}


@dataclass(frozen=True)
class Known:
    """A daemon with two clients, and how each connects and calls."""

    daemon: Daemon
    credentials: dict[str, tuple[grpc.ChannelCredentials | None, Metadata]]

    def client(self, name: str) -> "Client":
        tls, metadata = self.credentials[name]
        return Client(
            connect(self.daemon.grpc.replace("127.0.0.1", "localhost") if tls else self.daemon.grpc, tls), metadata
        )


class Client:
    """Calls over a connection of its own."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def say(self, message: pb.ModelInferRequest) -> Outcome:
        """The answer's first element, or code and sentence."""
        call = method(self._channel, "ModelInfer")(message, metadata=self._metadata)
        return first(await call) if await call.code() is OK else await wire.outcome(call)

    async def stream(self, *messages: pb.ModelInferRequest) -> list[float | str]:
        """Likewise over a stream, which is closed by then."""
        call = method(self._channel, "ModelStreamInfer")(metadata=self._metadata)
        for message in messages:
            await call.write(message)
        await call.done_writing()
        return [answer.error_message or first(answer.infer_response) async for answer in call]


def secret(name: str) -> str:
    return f"secret-of-{name}-".ljust(43, "x")


def with_tokens(folder: Path) -> tuple[list[str], dict[str, Any]]:
    tables = (
        f'[[token]]\nname = "{name}"\nsha256 = "{sha256(secret(name).encode()).hexdigest()}"\nscopes = ["infer"]\n'
        for name in "ab"
    )
    file = folder / "tokens.toml"
    file.write_text("".join(tables))
    shown = {name: (None, (("authorization", f"Bearer {secret(name)}"),)) for name in "ab"}
    return ["--tokens-file", str(file)], shown


def with_certificates(folder: Path) -> tuple[list[str], dict[str, Any]]:
    authority = CertificateAuthority(folder / "ca")
    server = authority.issue("server", "DNS:localhost")
    shown = {}
    for name in "ab":
        pair = authority.issue(name, f"DNS:{name}.example")
        credentials = [authority.certificate, pair.key, pair.certificate]
        shown[name] = grpc.ssl_channel_credentials(*(file.read_bytes() for file in credentials)), ()
    ca = str(authority.certificate)
    return ["--tls-cert", str(server.certificate), "--tls-key", str(server.key), "--tls-client-ca", ca], shown


def with_their_word(_: Path) -> tuple[list[str], dict[str, Any]]:
    return [], {name: (None, (("inferd-client", name),)) for name in "ab"}


@pytest.fixture(scope="module", params=[with_tokens, with_certificates, with_their_word], ids=lambda way: way.__name__)
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Known]:
    folder = tmp_path_factory.mktemp("known")
    flags, shown = request.param(folder)
    repository = state_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), *flags) as daemon:
        yield Known(daemon, shown)
    assert daemon.stop() == 0, daemon.log()


def not_known(model: str, sequence: int | str) -> tuple[StatusCode, str]:
    return StatusCode.NOT_FOUND, f"model '{model}': sequence '{sequence}' is not known; begin with sequence_start"


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("sequence", [42, "42"])
def test_another_client_neither_reads_ends_nor_replaces_a_sequence(
    known: Known, model: str, sequence: int | str
) -> None:
    to, begun = KINDS[model], {"inner": 10.0, "steps": 5.0}[model]

    async def talk() -> dict[str, Outcome]:
        async with known.client("a") as a, known.client("b") as b:
            seen = {"a begins": await a.say(to(5, sequence, start=True))}
            seen["b reads"] = await b.say(to(1, sequence))
            seen["b ends"] = await b.say(to(1, sequence, end=True))
            seen["a goes on"] = await a.say(to(1, sequence))
            seen["b begins"] = await b.say(to(100, sequence, start=True))
            seen["a goes on still"] = await a.say(to(1, sequence))
            seen["b ends its own"] = await b.say(to(1, sequence, end=True))
            seen["a ends"] = await a.say(to(1, sequence, end=True))
            await a.say(to(1, "ended by a", start=True, end=True))
            seen["b asks for what a alone has had"] = await b.say(to(1, "ended by a"))
            seen["a asks for it"] = await a.say(to(1, "ended by a"))
            return seen

    assert asyncio.run(talk()) == {
        "a begins": begun,
        "b reads": not_known(model, sequence),
        "b ends": not_known(model, sequence),
        "a goes on": begun + 1,
        "b begins": begun / 5 * 100,
        "a goes on still": begun + 2,
        "b ends its own": begun / 5 * 100 + 1,
        "a ends": begun + 3,
        "b asks for what a alone has had": not_known(model, "ended by a"),
        "a asks for it": (
            StatusCode.NOT_FOUND,
            f"model '{model}': sequence 'ended by a' has ended; begin with sequence_start",
        ),
    }


def test_a_client_is_the_same_over_another_connection_and_over_a_stream(known: Known) -> None:
    async def talk() -> list[Any]:
        async with known.client("a") as a:
            seen: list[Any] = [await a.say(add(1, "moves", start=True))]
        async with known.client("a") as a, known.client("b") as b:
            seen.append(await a.say(add(1, "moves")))
            (refused,) = await b.stream(add(1, "moves"))
            seen.append(refused)
            seen += await b.stream(add(7, "moves", start=True))
            # B's stream has ended, and what came over it; what is A's is as it was.
            seen.append(await a.say(add(1, "moves")))
            seen += await a.stream(add(1, "moves", end=True))
            return seen

    code, sentence = not_known("inner", "moves")
    assert asyncio.run(talk()) == [2.0, 3.0, f"[{code.name}]: {sentence}", 14.0, 4.0, 5.0]


def test_a_client_that_takes_all_it_gets_leaves_places_to_another(known: Known) -> None:
    async def talk() -> tuple[list[Outcome], list[Outcome]]:
        async with known.client("a") as a, known.client("b") as b:
            crowding = [await b.say(add(1, number, start=True)) for number in range(1, 20)]
            found = [await a.say(add(1, 1, start=True)), await a.say(add(1, 1, end=True))]
            for number in range(1, 7):
                await b.say(add(1, number, end=True))
            return crowding, found

    crowding, found = asyncio.run(talk())
    assert found == [2.0, 3.0]
    assert crowding[:6] == [2.0] * 6
    said = "model 'inner': this client has 6 of 8 live sequences; the rest are reserved for other clients"
    for refused in crowding[6:]:
        assert isinstance(refused, tuple)
        assert (refused[0], refused[1].rpartition("; ")[0]) == (StatusCode.RESOURCE_EXHAUSTED, said)


@pytest.mark.parametrize("model", KINDS)
def test_clients_that_use_the_same_ids_at_once_get_what_each_would_get_alone(known: Known, model: str) -> None:
    to, ids, turns = KINDS[model], (1, "1", 2), 15

    async def all_of(name: str, each: int) -> list[list[Outcome]]:
        async with known.client(name) as client:

            async def one(sequence: int | str) -> list[Outcome]:
                return [
                    await client.say(to(each, sequence, start=not turn, end=turn == turns - 1)) for turn in range(turns)
                ]

            return list(await asyncio.gather(*(one(sequence) for sequence in ids)))

    async def talk() -> list[list[list[Outcome]]]:
        return list(await asyncio.gather(all_of("a", 1), all_of("b", 100)))

    more = 1 if model == "inner" else 0
    for got, each in zip(asyncio.run(talk()), (1, 100), strict=True):
        assert got == [[float(each * (turn + 1 + more)) for turn in range(turns)]] * len(ids)
