"""Calls a daemon's Tuner service, for inferd's own commands."""

from types import TracebackType
from typing import Self

from inferd._pb import tuner_pb2 as pb
from inferd.rpc.caller import Caller
from inferd.security.shown import NOTHING, Shown

_SERVICE = pb.DESCRIPTOR.services_by_name["Tuner"].full_name


class TunerClient:
    """Calls the server at ``target``, HOST:PORT; every call can raise CallFailed. ``timeout`` in seconds.

    An empty ``version`` is the newest that was loaded.
    """

    def __init__(self, target: str, timeout: float = 120.0, shown: Shown = NOTHING) -> None:
        self._caller = Caller(target, _SERVICE, timeout, shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._caller.close()

    def status(self) -> list[pb.Tuning]:
        """A line a model version."""
        return list(self._caller.call("Status", pb.StatusRequest(), pb.StatusResponse).tunings)

    def explain(self, model: str, version: str = "") -> pb.ExplainResponse:
        """The choice, and what it was chosen from."""
        answer: pb.ExplainResponse = self._caller.call(
            "Explain", pb.ModelVersion(model=model, version=version), pb.ExplainResponse
        )
        return answer

    def export(self, model: str, version: str = "") -> str:
        """The profile, JSON."""
        return str(
            self._caller.call("Export", pb.ModelVersion(model=model, version=version), pb.ExportResponse).profile
        )

    def pin(self, model: str, version: str = "", *, pinned: bool = True, settings: pb.Settings | None = None) -> str:
        """Keep what is served, or what ``settings`` say once that has passed its trial. What is the case then, in
        words."""
        request = pb.PinRequest(model=model, version=version, pinned=pinned, settings=settings)
        return str(self._caller.call("Pin", request, pb.TunerAnswer).said)

    def roll_back(self, model: str, version: str = "") -> str:
        """What is the case now, in words."""
        return str(self._caller.call("Rollback", pb.ModelVersion(model=model, version=version), pb.TunerAnswer).said)

    def tune(self, model: str, version: str = "") -> str:
        """What is the case now, in words."""
        return str(self._caller.call("Tune", pb.ModelVersion(model=model, version=version), pb.TunerAnswer).said)
