"""What ``<model>/model.toml`` may contain: the one declaration of every per-model setting.

docs/model-configuration.md is generated from here. A key left out keeps the default,
so most models need no file.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    create_model,
    model_validator,
)

from inferd.axes import AXES, DEVICE_CHOICES, QUANTITIES
from inferd.config import toml_file
from inferd.config.allowed import Allowed, Duration, Size
from inferd.config.problem import problem_of
from inferd.tensors import Dim

_ONE_DEVICE = r"[A-Z]+(\.[0-9]+)*"
_DEVICE = re.compile(
    r"CPU|GPU(\.[0-9]+)*|NPU(\.[0-9]+)?"
    rf"|AUTO|(AUTO|HETERO|MULTI):{_ONE_DEVICE}(,{_ONE_DEVICE})*"
    rf"|BATCH:{_ONE_DEVICE}(\([0-9]+\))?"
)
_DEVICES = "CPU, GPU, GPU.<n>, NPU, AUTO[:list], HETERO:list, MULTI:list or BATCH:device[(n)]"
_LARGEST_DIM = 2**31 - 1

# These have a key of their own, or are known to break the process (OpenVINO fact 15: with CPU
# reservation every later compile in the process can fail).
_RESERVED_PROPERTIES = {
    "ENABLE_CPU_RESERVATION": "it can make every later compile in this process fail",
    "CACHE_DIR": "inferd keeps its own checked cache; see the daemon's cache_dir",
    "INFERENCE_PRECISION_HINT": "set execution.precision",
    "EXECUTION_MODE_HINT": "set execution.mode",
    "PERFORMANCE_HINT": "set objective.goal",
} | {axis.property: f"set execution.{name}" for name, axis in AXES.items() if axis.property}


# TOML has types, so "4", true and 1.0 are not counts; only its lists have to become tuples.
_LIST = Strict(False)


class _SettingsTable(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise ValueError
    return text


def _once(devices: tuple[str, ...]) -> tuple[str, ...]:
    for device in devices:
        if devices.count(device) > 1:
            raise ValueError(f"{device} is listed {devices.count(device)} times; list each device once")
    return devices


def _dim(value: Any) -> Dim:
    """A TOML dimension: 224, "?" or -1 for any, "1..8" or "1.." for bounds."""
    match value:
        case Dim():
            return value
        case "?":
            return Dim(0, None)
        case int() if not isinstance(value, bool) and -1 <= value <= _LARGEST_DIM:
            return Dim(0, None) if value == -1 else Dim(value, value)
        case str() if bounds := re.fullmatch(r"([0-9]{1,10})\.\.([0-9]{0,10})", value):
            lo, hi = int(bounds[1]), int(bounds[2]) if bounds[2] else None
            if lo <= (_LARGEST_DIM if hi is None else hi) <= _LARGEST_DIM:
                return Dim(lo, hi)
    raise ValueError


def _per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) not in (0, 1, 3):
        raise ValueError
    return values


def _property_name(name: str) -> str:
    if reason := _RESERVED_PROPERTIES.get(name):
        raise ValueError(f"can't be set here: {reason}")
    return name


def _property_value(value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise ValueError
    return value


DeviceName = Annotated[str, AfterValidator(_device), Allowed(_DEVICES, 'strings, such as ["CPU"]')]
ShapeDim = Annotated[
    Dim,
    BeforeValidator(_dim),
    Allowed('a size, "?", "LO..HI" with LO <= HI, or "LO.."', 'dimensions, such as [1, 3, "?", "1..8"]'),
]
ConcreteDim = Annotated[int, Field(ge=0, le=_LARGEST_DIM)]
PropertyName = Annotated[str, AfterValidator(_property_name)]
PropertyValue = Annotated[
    str | int | float | bool,
    BeforeValidator(_property_value),
    Allowed("a string, a number, true or false", "strings, numbers, true or false"),
]


class VersionSettings(_SettingsTable):
    """Which versions on disk are served."""

    policy: Literal["latest", "all", "listed"] = Field(
        "latest", description="Serve the newest ones, all, or those listed."
    )
    count: int = Field(1, ge=1, le=1000, description="How many of the newest, under policy latest.")
    listed: Annotated[tuple[Annotated[int, Field(ge=1)], ...], _LIST] = Field(
        (), description="The versions to serve, under policy listed."
    )

    @model_validator(mode="after")
    def _listed_goes_with_its_policy(self) -> "VersionSettings":
        if self.policy == "listed" and not self.listed:
            raise ValueError("policy is 'listed' but listed names no version")
        if self.policy != "listed" and self.listed:
            raise ValueError(f"listed names versions but policy is '{self.policy}'; set policy = \"listed\"")
        return self


class ObjectiveSettings(_SettingsTable):
    """What to optimise for."""

    goal: Literal["throughput", "latency"] = Field(
        "throughput",
        description="What the tuner optimises: answers a second, or median latency; either within latency_slo when "
        "that is set. Also the OpenVINO performance hint that the model is compiled with.",
    )
    latency_slo: Duration | None = Field(
        None,
        gt=0,
        le=3600,
        description="Longest time from a request's arrival to its answer. inferd refuses a request that would miss it "
        "at once, and says when to retry. Unset, only the queue's limits refuse requests.",
    )
    percentile: float = Field(99.0, ge=50, lt=100, description="Per cent of the answered requests to meet latency_slo.")
    availability: float = Field(
        99.9,
        ge=50,
        lt=100,
        description="Per cent of the requests to answer. Requests that are shed, fail or time out count against it; "
        "client errors do not. Only alerts, the status page and top use it.",
    )


class _Compiled(_SettingsTable):
    mode: Literal["accuracy", "performance"] = Field(
        "accuracy",
        description="accuracy keeps the model's own precision; performance lets the device lower it "
        "(bf16 on recent CPUs).",
    )
    precision: Literal["auto", "f32", "bf16", "f16"] = Field(
        "auto", description="Inference precision; auto follows mode."
    )
    streams: int = Field(0, ge=0, le=QUANTITIES["streams"].most, description="Parallel streams on the device.")
    threads: int = Field(
        0, ge=0, le=QUANTITIES["threads"].most, description="CPU threads, up to the daemon's CPU budget."
    )


if TYPE_CHECKING:

    class _Chosen(_Compiled): ...

else:
    # The choices come from inferd.axes.
    _Chosen = create_model(
        "_Chosen",
        __base__=_Compiled,
        **{
            name: (Literal[("auto", *axis.words)], Field("auto", description=axis.help))
            for name, axis in DEVICE_CHOICES.items()
        },
    )


class ExecutionSettings(_Chosen):
    """How the model is compiled and run. 0 and auto leave the choice to OpenVINO's hint."""

    infer_requests: int = Field(
        0, ge=0, le=QUANTITIES["requests"].most, description="Infer requests in the pool of each device."
    )
    path: Literal["auto", "async", "sync", "inline"] = Field(
        "auto",
        description="How runs reach OpenVINO. async hands them to OpenVINO's own threads. sync gives each infer "
        "request a thread that waits for its run: faster when a run takes a fraction of a millisecond and few are in "
        "flight. inline computes one run at a time on the event loop's thread: every model waits for it, and neither "
        "cancel nor time-out interrupts it. auto is inline for CPU models with fixed shapes whose runs take at most "
        "0.1 ms at warm-up or while serving, unless several streams, or a number of threads or infer requests, are "
        "set; it hands runs over again when they become slow. Otherwise auto is what was measured as best, or async "
        "without a measurement.",
    )
    hang_timeout: Duration | None = Field(
        None,
        ge=0,
        le=86400,
        description="Time after which inferd gives up on an unfinished run: it answers the requests with INTERNAL and "
        "replaces the infer request. Unset: one minute or 20 times the slowest run, whichever is longer. 0: never.",
        # It does not depend on how fast the model is, and stored profiles are checked against that.
        repr=False,
    )


class BatchingSettings(_SettingsTable):
    """The batch dimension, and dynamic batching."""

    max_size: int = Field(
        0,
        ge=0,
        le=QUANTITIES["batch"].most,
        description="Bound of the first dimension, 1..max_size, of every input; 0 leaves the model's own shapes.",
    )
    enabled: bool = Field(
        True,
        description="Dynamic batching: run waiting requests of equal shapes as one batch, if that measurably raises "
        "throughput and keeps the objective.",
    )
    max_batch_rows: int | None = Field(
        None, ge=1, le=65536, description="Rows that one batch of requests may have; unset: max_size."
    )
    max_delay: Duration = Field(
        0.0,
        ge=0,
        le=60,
        description="Time a request may wait for others to fill a batch while an infer request is free; "
        "0 starts it at once.",
    )
    preferred_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], _LIST] = Field(
        (), description="Row counts to keep runs to where enough requests wait."
    )

    @model_validator(mode="after")
    def _preferred_sizes_fit(self) -> "BatchingSettings":
        if self.preferred_sizes and max(self.preferred_sizes) > self.max_size:
            raise ValueError(f"preferred_sizes has {max(self.preferred_sizes)} but max_size is {self.max_size}")
        if self.max_batch_rows and self.max_batch_rows > max(1, self.max_size):
            raise ValueError(f"max_batch_rows is {self.max_batch_rows} but max_size is {self.max_size}")
        return self


class QueueSettings(_SettingsTable):
    """Limits of the request queue. Unset ones take the daemon's queue_max_length and queue_max_bytes."""

    max_length: int | None = Field(None, ge=1, le=1_000_000, description="Requests that may wait.")
    max_bytes: Size | None = Field(None, ge=1, description="Size of the input that may wait.")
    default_timeout: Duration | None = Field(
        None,
        gt=0,
        le=86400,
        description="Time after which inferd answers DEADLINE_EXCEEDED to a request without its own deadline.",
    )


class StateTensor(_SettingsTable):
    """An input that the server fills from an output of the sequence's previous request."""

    output: str = Field(min_length=1, description="Name of the output that feeds this input.")
    initial: float = Field(0.0, description="Every element's value at the start of a sequence.")
    batch_axis: int = Field(
        0, ge=0, le=63, description="The state's dimension that counts rows, for models that run several together."
    )


class SequenceSettings(_SettingsTable):
    """Requests with a sequence_id, which share a state that the server keeps between them."""

    max_active: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Live sequences of all clients together; one client may have three quarters of what other clients "
        "leave. Unset: 1024 when the state is declared here, 16 when the model keeps it itself, because each such "
        "sequence needs its own infer request.",
    )
    idle_timeout: Duration = Field(
        60.0, gt=0, le=86400, description="Time without a request after which a sequence ends."
    )
    state: dict[str, StateTensor] = Field({}, description="State tensors by input name.")


class ShareSettings(_SettingsTable):
    """The model's part of a device that several models want."""

    weight: float = Field(
        1.0, gt=0, le=1000, description="Device time it gets in proportion to the other models' weights."
    )


class NumberSettings(_SettingsTable):
    """Numbers too large for the model's devices, which compute 64-bit integers in 32 bits and doubles in float32."""

    out_of_range: Literal["refuse", "accept"] = Field(
        "refuse",
        description="refuse answers a request that has such a number with INVALID_ARGUMENT. accept computes with the "
        "device's conversion: integers lose their upper bits or are rounded, doubles become the largest float32. "
        "docs/limits.md lists these numbers.",
    )


class RolloutSettings(_SettingsTable):
    """How a new or changed version replaces the one that serves."""

    check: Literal["outputs", "off"] = Field(
        "outputs",
        description="outputs tests the version on recent inputs of clients, or on synthetic ones, before it gets "
        "requests. It has to answer wherever the current version does, with tensors of its declared types and shapes, "
        "and without NaN or infinity where the current version has numbers. A version that fails the test is a failed "
        "load.",
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="For versions that must give the same numbers: largest difference in that check, as a part of an "
        "output's largest element.",
    )
    canary_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Part of the requests that the new version gets at first, while the current version answers the "
        "others. The load ends with its promotion or rollback. 0: it takes over at once.",
    )
    canary_duration: Duration = Field(
        60.0, gt=0, le=86400, description="Shortest time to compare it with the current version."
    )
    canary_requests: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Requests that it has to answer before promotion. After five times canary_duration inferd decides "
        "with the requests there were.",
    )

    @model_validator(mode="after")
    def _tolerance_goes_with_the_check(self) -> "RolloutSettings":
        if self.tolerance is not None and self.check == "off":
            raise ValueError("tolerance is set but check is 'off'")
        return self


class WarmupSettings(_SettingsTable):
    """Inferences on synthetic input before the model is ready."""

    runs: int = Field(2, ge=0, le=1000, description="Inferences on each infer request; 0 skips the warm-up.")
    shapes: dict[str, Annotated[tuple[ConcreteDim, ...], _LIST]] = Field(
        {}, description="Concrete shape by input name; the default is the smallest that the model takes."
    )


class PreprocessingSettings(_SettingsTable):
    """Steps compiled into the model in front of one image input: clients send u8 NHWC of any size."""

    layout: Literal["NCHW", "NHWC"] = Field("NCHW", description="Layout that the model expects.")
    color_from: Literal["RGB", "BGR"] = Field("RGB", description="Channel order that clients send.")
    color_to: Literal["RGB", "BGR"] = Field("RGB", description="Channel order that the model expects.")
    resize: Literal["linear", "cubic", "nearest", "none"] = Field(
        "linear", description="How to resize an image to the model's size; none accepts only that size."
    )
    mean: Annotated[tuple[float, ...], _LIST, AfterValidator(_per_channel), Allowed("a list of 1 or 3 numbers")] = (
        Field((), description="Subtracted per channel (or one for all), in the model's channel order.")
    )
    scale: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        _LIST,
        AfterValidator(_per_channel),
        Allowed("a list of 1 or 3 numbers above 0"),
    ] = Field((), description="Divided by, per channel (or one for all), after the mean.")


class ModelConfig(_SettingsTable):
    """One model's settings; the tables mirror the sections of the file."""

    devices: Annotated[tuple[DeviceName, ...], _LIST, AfterValidator(_once)] = Field(
        ("CPU",),
        min_length=1,
        description=f"Devices to serve on, one pool of infer requests each: {_DEVICES}.",
    )
    versions: VersionSettings = VersionSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    execution: ExecutionSettings = ExecutionSettings()
    batching: BatchingSettings = BatchingSettings()
    queue: QueueSettings = QueueSettings()
    sequences: SequenceSettings = SequenceSettings()
    share: ShareSettings = ShareSettings()
    shapes: dict[str, Annotated[tuple[ShapeDim, ...], _LIST]] = Field(
        {}, description='Shape by input name; a dimension is a size, "?" (any), "LO..HI" or "LO..".'
    )
    preprocessing: dict[str, PreprocessingSettings] = Field({}, description="Image preprocessing by input name.")
    numbers: NumberSettings = NumberSettings()
    warmup: WarmupSettings = WarmupSettings()
    rollout: RolloutSettings = RolloutSettings()
    properties: dict[PropertyName, PropertyValue] = Field(
        {}, description="Further OpenVINO properties for compile_model, unchanged."
    )


def parse(text: str, source: str) -> ModelConfig:
    """The configuration in ``text``; raises ConfigurationError naming ``source``, key and what is allowed."""
    return _validated(toml_file.parse(text, source), source)


def read(file: Path, source: str) -> ModelConfig:
    """The configuration in ``file``, as :func:`parse`."""
    return _validated(toml_file.read(file, source), source)


def _validated(tables: dict[str, Any], source: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(tables)
    except ValidationError as error:
        raise problem_of(error, ModelConfig, lambda _: source) from None
