from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelVersion(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("tunings",)
    TUNINGS_FIELD_NUMBER: _ClassVar[int]
    tunings: _containers.RepeatedCompositeFieldContainer[Tuning]
    def __init__(self, tunings: _Optional[_Iterable[_Union[Tuning, _Mapping]]] = ...) -> None: ...

class Tuning(_message.Message):
    __slots__ = ("model", "version", "device", "phase", "serving", "pinned", "tuned_at", "said", "decisions", "seconds", "gain", "looks", "spent", "budget", "best")
    class DecisionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    TUNED_AT_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    LOOKS_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    device: str
    phase: str
    serving: str
    pinned: bool
    tuned_at: str
    said: str
    decisions: _containers.ScalarMap[str, int]
    seconds: float
    gain: float
    looks: int
    spent: float
    budget: float
    best: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., device: _Optional[str] = ..., phase: _Optional[str] = ..., serving: _Optional[str] = ..., pinned: bool = ..., tuned_at: _Optional[str] = ..., said: _Optional[str] = ..., decisions: _Optional[_Mapping[str, int]] = ..., seconds: _Optional[float] = ..., gain: _Optional[float] = ..., looks: _Optional[int] = ..., spent: _Optional[float] = ..., budget: _Optional[float] = ..., best: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("tuning", "reason", "objective", "percentile", "out_of_reach", "points", "left_out", "gains")
    class GainsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TUNING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_REACH_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    GAINS_FIELD_NUMBER: _ClassVar[int]
    tuning: Tuning
    reason: str
    objective: float
    percentile: float
    out_of_reach: bool
    points: _containers.RepeatedCompositeFieldContainer[Point]
    left_out: _containers.RepeatedScalarFieldContainer[str]
    gains: _containers.ScalarMap[str, float]
    def __init__(self, tuning: _Optional[_Union[Tuning, _Mapping]] = ..., reason: _Optional[str] = ..., objective: _Optional[float] = ..., percentile: _Optional[float] = ..., out_of_reach: bool = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., left_out: _Optional[_Iterable[str]] = ..., gains: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("candidate", "goodput", "low", "high", "throughput", "median", "tail", "eligible", "chosen", "windows")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    GOODPUT_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    THROUGHPUT_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    goodput: float
    low: float
    high: float
    throughput: float
    median: float
    tail: float
    eligible: bool
    chosen: bool
    windows: int
    def __init__(self, candidate: _Optional[str] = ..., goodput: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., throughput: _Optional[float] = ..., median: _Optional[float] = ..., tail: _Optional[float] = ..., eligible: bool = ..., chosen: bool = ..., windows: _Optional[int] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: str
    def __init__(self, profile: _Optional[str] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("model", "version", "pinned", "settings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    pinned: bool
    settings: Settings
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., pinned: bool = ..., settings: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("streams", "threads", "requests", "batch", "choices")
    class ChoicesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    streams: int
    threads: int
    requests: int
    batch: int
    choices: _containers.ScalarMap[str, str]
    def __init__(self, streams: _Optional[int] = ..., threads: _Optional[int] = ..., requests: _Optional[int] = ..., batch: _Optional[int] = ..., choices: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TunerAnswer(_message.Message):
    __slots__ = ("said",)
    SAID_FIELD_NUMBER: _ClassVar[int]
    said: str
    def __init__(self, said: _Optional[str] = ...) -> None: ...
