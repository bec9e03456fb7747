"""The Tuner service: shows the tuner's state, and lets operators steer it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import Message

from inferd._pb import tuner_pb2 as pb
from inferd.axes import CHOICES, QUANTITIES
from inferd.disclosure import without_host_paths
from inferd.errors import InvalidRequest, one_line
from inferd.transport.call import ServerCall
from inferd.tuner.operator_commands import OperatorCommands
from inferd.tuner.profile import Profile, as_json
from inferd.tuner.record import TuningRecord
from inferd.tuning.candidates import Candidate


class TunerControl:
    """The RPCs of the service; ``methods`` by their names."""

    def __init__(self, commands: OperatorCommands) -> None:
        self._commands = commands

    @property
    def methods(self) -> dict[str, Callable[[Any, ServerCall], Awaitable[Message]]]:
        return {
            "Status": self.status,
            "Explain": self.explain,
            "Export": self.export,
            "Pin": self.pin,
            "Rollback": self.roll_back,
            "Tune": self.tune,
        }

    async def status(self, *_: Any) -> Message:
        return pb.StatusResponse(tunings=map(_tuning, self._commands.records.all()))

    async def explain(self, request: pb.ModelVersion, _: ServerCall) -> Message:
        record = self._commands.records.of(request.model, request.version)
        answer = pb.ExplainResponse(tuning=_tuning(record), reason=without_host_paths(record.status_text))
        if (profile := record.profile) is not None:
            answer.reason = without_host_paths(profile.reason)
            answer.objective, answer.percentile = profile.objective or 0.0, profile.percentile
            answer.out_of_reach = profile.out_of_reach
            answer.points.extend(_points(profile))
            answer.left_out.extend(profile.left_out)
            answer.gains.update(profile.gains)
        return answer

    async def export(self, request: pb.ModelVersion, _: ServerCall) -> Message:
        record = self._commands.records.of(request.model, request.version)
        if record.profile is None:
            raise InvalidRequest(
                request.model,
                f"it has no profile to export: {without_host_paths(record.status_text) or 'not tuned yet'}",
            )
        return pb.ExportResponse(profile=as_json(record.profile))

    async def pin(self, request: pb.PinRequest, _: ServerCall) -> Message:
        record = self._commands.records.of(request.model, request.version)
        if request.HasField("settings"):
            if not request.pinned:
                raise InvalidRequest(request.model, "settings are given and pinned is false: they would not stay")
            serving = await self._commands.serve_with(record, partial(_changed, request.model, request.settings))
            return pb.TunerAnswer(said=f"serving with {serving}, and pinned")
        self._commands.pin(record, request.pinned)
        return pb.TunerAnswer(said="pinned" if request.pinned else "no longer pinned")

    async def roll_back(self, request: pb.ModelVersion, _: ServerCall) -> Message:
        record = self._commands.records.of(request.model, request.version)
        serving = await self._commands.roll_back(record)
        return pb.TunerAnswer(said=f"rolled back to {serving}, and pinned")

    async def tune(self, request: pb.ModelVersion, _: ServerCall) -> Message:
        record = self._commands.records.of(request.model, request.version)
        return pb.TunerAnswer(said=self._commands.request_tuning(record))


def _changed(model: str, settings: pb.Settings, now: Candidate) -> Candidate:
    """``now`` with what ``settings`` say."""
    changes: dict[str, Any] = {axis: value for axis in QUANTITIES if (value := getattr(settings, axis))}
    for axis, word in settings.choices.items():
        if axis not in CHOICES:
            raise InvalidRequest(model, f"choice '{one_line(axis, 40)}' is unknown; allowed: {', '.join(CHOICES)}")
        words = CHOICES[axis].words
        if word not in words:
            raise InvalidRequest(model, f"{axis} '{one_line(word, 40)}' is unknown; allowed: {', '.join(words)}")
        changes[axis] = words[word]
    return replace(now, **changes)


def _tuning(record: TuningRecord) -> pb.Tuning:
    status = record.status
    answer = pb.Tuning(
        model=record.source.name,
        version=str(record.source.version),
        device=record.device,
        phase=status.phase.value,
        serving=record.candidate.describe() if record.candidate is not None else "",
        said=without_host_paths(status.status_text),
        decisions={decision.value: count for decision, count in record.decisions.items()},
        seconds=record.seconds,
        gain=record.gain,
    )
    if record.profile is not None:
        answer.pinned, answer.tuned_at = record.profile.pinned, record.profile.tuned_at
    if (progress := record.progress) is not None:
        answer.looks, answer.spent, answer.budget = progress.looks, progress.spent, progress.budget
        answer.best = progress.best.candidate.describe() if progress.best is not None else ""
    return answer


def _points(profile: Profile) -> list[pb.Point]:
    return [
        pb.Point(
            candidate=p.candidate.describe(),
            goodput=p.goodput,
            low=p.low,
            high=p.high,
            throughput=p.throughput,
            median=p.median,
            tail=p.tail,
            eligible=p.eligible,
            chosen=p.candidate == profile.winner,
            windows=p.windows,
        )
        for p in profile.points
    ]
