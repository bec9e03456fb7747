"""Calls a daemon's Tuner service, for inferd's own commands."""

from types import TracebackType
from typing import Self

from inferd._pb import tuner_pb2 as pb
from inferd.rpc.rpc_client import RpcClient
from inferd.security.client_credentials import NO_CREDENTIALS, ClientCredentials

_SERVICE = pb.DESCRIPTOR.services_by_name["Tuner"].full_name


class TunerClient:
    """Calls the server at ``target``, HOST:PORT; every call can raise CallFailed. ``timeout`` in seconds.

    An empty ``version`` is the newest that was loaded.
    """

    def __init__(self, target: str, timeout: float = 120.0, credentials: ClientCredentials = NO_CREDENTIALS) -> None:
        self._rpc = RpcClient(target, _SERVICE, timeout=timeout, credentials=credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rpc.close()

    def status(self) -> list[pb.Tuning]:
        """A line a model version."""
        return list(self._rpc.call("Status", pb.StatusRequest(), pb.StatusResponse).tunings)

    def explain(self, model: str, version: str = "") -> pb.ExplainResponse:
        """The choice, and what it was chosen from."""
        answer: pb.ExplainResponse = self._rpc.call(
            "Explain", pb.ModelVersion(model=model, version=version), pb.ExplainResponse
        )
        return answer

    def export(self, model: str, version: str = "") -> str:
        """The profile, JSON."""
        return str(self._rpc.call("Export", pb.ModelVersion(model=model, version=version), pb.ExportResponse).profile)

    def pin(self, model: str, version: str = "", *, pinned: bool = True, settings: pb.Settings | None = None) -> str:
        """Keep what is served, or what ``settings`` say once that has passed its trial. What is the case then, in
        words."""
        request = pb.PinRequest(model=model, version=version, pinned=pinned, settings=settings)
        return str(self._rpc.call("Pin", request, pb.TunerAnswer).said)

    def roll_back(self, model: str, version: str = "") -> str:
        """What is the case now, in words."""
        return str(self._rpc.call("Rollback", pb.ModelVersion(model=model, version=version), pb.TunerAnswer).said)

    def tune(self, model: str, version: str = "") -> str:
        """What is the case now, in words."""
        return str(self._rpc.call("Tune", pb.ModelVersion(model=model, version=version), pb.TunerAnswer).said)
