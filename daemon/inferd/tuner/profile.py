"""Tuning results on disk: a readable file for each model version and device.

A profile records the conditions that it was measured under, part by part. If any part differs, the
profile is ignored and the log names the difference. Files appear under their names only when complete.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, TypeVar

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from inferd import atomic_file, regular_file
from inferd.axes import QUANTITIES
from inferd.patience import SECONDS, limited
from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate
from inferd.tuning.outcome import Outcome

log = structlog.get_logger("inferd.tuning")

# Profiles of another format are not read.
FORMAT = 1
# The event loop writes profiles, which are small and few, and it may stand still for less than 2 s.
_WRITING_SECONDS = 1.0

T = TypeVar("T")

_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class ProfilePoint:
    """One measured candidate: answers per second, in time and in total; latencies in seconds."""

    candidate: Candidate
    windows: int
    answers: int
    goodput: _Finite
    low: float
    high: float
    throughput: _Finite
    median: float
    tail: float
    eligible: bool

    @classmethod
    def of(cls, estimate: Estimate) -> "ProfilePoint":
        e = estimate
        return cls(
            e.candidate, e.windows, e.answers, e.goodput, e.low, e.high, e.throughput, e.median, e.tail, e.eligible
        )


@dataclass(frozen=True, slots=True)
class Sustained:
    """Random arrivals at ``rate`` per second, the fraction ``part`` of the measured goodput; ``in_time`` is the
    fraction answered in time."""

    rate: _Finite
    part: _Finite
    in_time: _Finite


@dataclass(frozen=True, slots=True)
class Profile:
    """The settings chosen for one model version on one device, the conditions (``key``), and the measurements.

    ``objective`` is in seconds, None if there is none. ``gains`` are keyed by the name of the seed compared with,
    ``seconds`` is the time spent, ``tuned_at`` is in ISO 8601. ``sustained`` is the highest rate of random arrivals
    tried that met the objective, None without an objective or a test. ``pinned`` profiles are not tuned again;
    ``previous`` holds the settings before this profile, for a rollback.
    """

    model: str
    version: int
    device: str
    key: Mapping[str, str]
    winner: Candidate
    reason: str
    objective: _Finite | None
    percentile: _Finite
    out_of_reach: bool
    seconds: _Finite
    tuned_at: str
    gains: Mapping[str, _Finite]
    points: tuple[ProfilePoint, ...]
    left_out: tuple[str, ...] = ()
    sustained: Sustained | None = None
    pinned: bool = False
    previous: Candidate | None = None
    format: int = field(default=FORMAT)

    @property
    def chosen(self) -> ProfilePoint | None:
        """The winner's measurement."""
        return next((p for p in self.points if p.candidate == self.winner), None)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """The fields that profiles of every format have."""

    format: int


_ADAPTER: TypeAdapter[Profile] = TypeAdapter(Profile)
_STAMP: TypeAdapter[_Stamp] = TypeAdapter(_Stamp)


def profile_of(
    model: str,
    version: int,
    device: str,
    key: Mapping[str, str],
    outcome: Outcome,
    seconds: float,
    tuned_at: str,
    sustained: Sustained | None = None,
) -> Profile | None:
    """``outcome`` as a profile; None if no candidate ran. Gains over a seed without answers are left out."""
    if outcome.winner is None:
        return None
    return Profile(
        model,
        version,
        device,
        key,
        outcome.winner.candidate,
        outcome.reason,
        outcome.goal.latency,
        outcome.goal.percentile,
        outcome.out_of_reach,
        round(seconds, 1),
        tuned_at,
        {gain.name: round(gain.ratio, 4) for gain in outcome.gains if isfinite(gain.ratio)},
        tuple(map(ProfilePoint.of, outcome.points)),
        tuple(f"{candidate.describe()}: {why}" for candidate, why in outcome.left_out.items()),
        sustained,
    )


def as_json(profile: Profile) -> str:
    """The contents of the profile's file."""
    return json.dumps(asdict(profile), indent=2) + "\n"


class Profiles:
    """The profiles in ``directory``, which is created with mode 0700 for the first one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, model: str, version: int, device: str, key: Mapping[str, str]) -> Profile | None:
        """The profile valid for ``key``, else None; logs a profile that does not match."""
        profile = self.stored(model, version, device)
        if profile is None:
            return None
        differing = sorted(k for k in {*key, *profile.key} if key.get(k) != profile.key.get(k))
        if differing:
            log.info(
                "profile ignored: conditions differ",
                model=model,
                version=version,
                device=device,
                differs=", ".join(f"{k}: {profile.key.get(k, '-')} then, {key.get(k, '-')} now" for k in differing),
            )
            return None
        return profile

    def stored(self, model: str, version: int, device: str) -> Profile | None:
        """The stored profile, valid or not; None if there is none or it can't be read."""
        file = self._file(model, version, device)
        try:
            text = self._limited(partial(regular_file.read, file), SECONDS)
            if (form := _STAMP.validate_json(text).format) != FORMAT:
                log.warning("profile ignored: unknown format", file=str(file), format=form)
                return None
            profile = _ADAPTER.validate_json(text)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("profile not read", file=str(file), reason=error.strerror)
            return None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            log.warning("profile ignored: damaged", file=str(file), reason=f"{where}: {first['msg']}")
            return None
        if problem := _problem_of(profile):
            log.warning("profile ignored: damaged", file=str(file), reason=problem)
            return None
        return profile

    def store(self, profile: Profile) -> bool:
        """Store ``profile`` in place of an earlier one. On failure, log a warning and return False."""
        file = self._file(profile.model, profile.version, profile.device)
        text = as_json(profile)
        try:
            self._limited(partial(self._write, file, text), _WRITING_SECONDS)
        except OSError as error:
            log.warning("profile not stored", file=str(file), reason=error.strerror)
            return False
        return True

    def remove(self, model: str, version: int, device: str) -> None:
        """Delete the profile. On failure, log a warning."""
        file = self._file(model, version, device)
        try:
            self._limited(partial(file.unlink, missing_ok=True), _WRITING_SECONDS)
        except OSError as error:
            log.warning("profile not removed", file=str(file), reason=error.strerror)

    def _limited(self, work: Callable[[], T], seconds: float) -> T:
        """``work``, on the folder. Raises TimeoutError if it does not answer."""
        return limited(f"profiles {self._directory}", work, seconds)

    def _write(self, file: Path, text: str) -> None:
        # mkdir applies the mode to the last folder only.
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        atomic_file.write(file, text.encode())

    def _file(self, model: str, version: int, device: str) -> Path:
        # The repository restricts model names to plain characters; devices may have colons and commas.
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in device)
        return self._directory / model / f"{version}.{safe}.json"


def _problem_of(profile: Profile) -> str:
    """What an edited file holds that no tuning wrote; "" if nothing."""
    candidates = {"winner": profile.winner, "previous": profile.previous}
    candidates |= {f"points.{number}.candidate": point.candidate for number, point in enumerate(profile.points)}
    for where, candidate in candidates.items():
        for name, axis in QUANTITIES.items() if candidate is not None else ():
            if not 1 <= (value := getattr(candidate, name)) <= axis.most:
                return f"{where}.{name} must be 1..{axis.most}, not {_short(value)}"
    return ""


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "a longer number"
