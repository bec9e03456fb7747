"""The daemon's settings. A flag beats a variable, a variable the file, the file the default.

Each setting is declared here and nowhere else, with its group and whether most people set it: the
flag ``--some-name``, the variable ``INFERD_SOME_NAME``, the file key ``some_name``, ``--help`` and
docs/configuration.md all come from the declaration.
"""

import os
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from inferd.config import toml_file
from inferd.config.allowed import Allowed, Duration, Size
from inferd.config.problem import problem_of
from inferd.config.variables import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    TOKEN_VARIABLE,
    WORKER_VARIABLE,
    flag_of,
    variable_of,
)
from inferd.errors import ConfigurationError, did_you_mean


class Group(Enum):
    """The part of inferd that a setting belongs to; stands in ``Annotated``. Help and documentation have a section
    for each, in this order."""

    MODELS = "Models"
    PORTS = "Ports"
    SECURITY = "TLS and tokens"
    PERFORMANCE = "CPU and tuning"
    LIMITS = "Queues and limits"
    CONNECTIONS = "Connections"
    SHARED_MEMORY = "Shared memory"
    HEALTH = "Health and shutdown"
    OBSERVABILITY = "Logs, metrics and traces"


COMMON = object()
"""Stands in ``Annotated`` for the settings that most people use, which ``--help`` shows."""


def _host_port(text: str) -> str:
    if not (found := _HOST_PORT.fullmatch(text)) or int(found["port"]) > 65535:
        raise ValueError
    return text


def _workers(value: Any) -> Any:
    """0 for ``auto``."""
    if value in ("0", 0):
        raise ValueError
    return 0 if value == "auto" else value


def _metadata_key(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9_.-]{1,64}", text) or text.startswith("grpc-") or text.endswith("-bin"):
        raise ValueError
    return text


def _trace_endpoint(text: str) -> str:
    if text and not ((found := re.fullmatch(r"https?://(.+)", text)) and _host_port(found[1])):
        raise ValueError
    return text


def _folder(value: Any) -> Any:
    # Path("") is the working directory, which is never what an empty variable means.
    if value == "":
        raise ValueError
    return value


_BINDS = ("grpc_bind", "metrics_bind")
_HOST_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^:\[\]\s]+):(?P<port>[0-9]{1,5})")
HostPort = Annotated[
    str,
    AfterValidator(_host_port),
    Allowed("HOST:PORT with a port of 0..65535, such as 127.0.0.1:8001 or [::1]:8001", kind="HOST:PORT"),
]
Workers = Annotated[
    int,
    BeforeValidator(_workers),
    Field(ge=0, le=512),
    Allowed("auto, or a number of processes of 1..512", kind="INTEGER|auto"),
]
MetadataKey = Annotated[
    str,
    AfterValidator(_metadata_key),
    Allowed("1 to 64 of a-z, 0-9, '_', '-' and '.', not beginning with grpc- nor ending in -bin", kind="KEY"),
]
TraceEndpoint = Annotated[
    str,
    AfterValidator(_trace_endpoint),
    Allowed("http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:4317, or nothing", kind="URL"),
]
Folder = Annotated[Path, BeforeValidator(_folder), Allowed("the path of a folder", kind="DIR")]
FileIfAny = Annotated[str, Allowed("the path of a file, or nothing", kind="FILE")]


def split_host_port(bind: str) -> tuple[str, int]:
    """``("::1", 8001)`` for ``"[::1]:8001"``; ``bind`` was validated as HostPort."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(bind: str) -> bool:
    """Whether only this machine can connect to ``bind``, judged by the address alone."""
    host, _ = split_host_port(bind)
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # a host name may resolve to any address, and to another one tomorrow


def default_cache_dir() -> Path:
    """`$CACHE_DIRECTORY` (systemd sets it), else `$XDG_CACHE_HOME/inferd`, else `~/.cache/inferd`."""
    return _own_folder("cache_dir", "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache")


def default_profile_dir() -> Path:
    """`profiles` in `$STATE_DIRECTORY` (systemd's), else in `$XDG_STATE_HOME/inferd` or `~/.local/state/inferd`."""
    return _own_folder("profile_dir", "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state") / "profiles"


def _own_folder(setting: str, assigned: str, base: str, below_home: str) -> Path:
    """Where systemd assigned a folder, otherwise where the XDG base directory specification puts it."""
    if folder := os.environ.get(assigned):
        return Path(folder.split(":")[0])
    if folder := os.environ.get(base):
        return Path(folder) / "inferd"
    try:
        return Path.home() / below_home / "inferd"
    except RuntimeError:
        # A container with an arbitrary user id: no HOME and no entry in the user database.
        raise ConfigurationError("settings", setting, "has no default: this user has no home folder") from None


class Settings(BaseModel):
    """All settings of the process."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    model_repository: Annotated[Folder, Group.MODELS, COMMON] = Field(
        description="Folder of MODEL/VERSION/model.onnx. One version can also be MODEL/model.onnx or MODEL.onnx."
    )
    grpc_bind: Annotated[HostPort, Group.PORTS, COMMON] = Field(
        "127.0.0.1:8001", description="Address of the gRPC port. Port 0 picks a free one."
    )
    metrics_bind: Annotated[HostPort, Group.PORTS, COMMON] = Field(
        "127.0.0.1:8002", description="Address of /metrics, /healthz and /readyz. Port 0 picks a free one."
    )
    workers: Annotated[Workers, Group.PERFORMANCE] = Field(
        1,
        description="Processes that serve behind one gRPC port, each on its own CPUs and with its own copy of the "
        "models. auto starts one for every 16 CPUs, and none across NUMA nodes. For machines with more cores than one "
        "Python interpreter can feed.",
    )
    reuse_port: Annotated[bool, Group.PORTS] = Field(
        False,
        description="Share the gRPC port with another daemon of the same user that shares it too (SO_REUSEPORT), for "
        "a roll-over. Without it, a port in use is an error.",
    )
    tls_cert: Annotated[FileIfAny, Group.SECURITY, COMMON] = Field(
        "",
        description="Certificate of both ports, PEM. Intermediate certificates follow it. Empty serves without TLS. "
        "inferd reads the three tls_ files again when they change.",
    )
    tls_key: Annotated[FileIfAny, Group.SECURITY, COMMON] = Field(
        "", description="Key of tls_cert, PEM. It must have no password."
    )
    tls_client_ca: Annotated[FileIfAny, Group.SECURITY] = Field(
        "",
        description="CAs of client certificates, PEM. When set, the gRPC port accepts only clients with a certificate "
        "from these CAs, and the metrics port requires a certificate or a token.",
    )
    tokens_file: Annotated[FileIfAny, Group.SECURITY, COMMON] = Field(
        "",
        description="TOML file of the known clients. It holds the hashes of their tokens and their scopes; when set, "
        "only these clients may call. inferd reads it again when it changes.",
    )
    allow_insecure_bind: Annotated[bool, Group.SECURITY] = Field(
        False, description="Allow a port that other machines can reach to have neither TLS nor tokens."
    )
    repository_max_models: Annotated[int, Group.MODELS] = Field(
        1024, ge=1, le=1_000_000, description="Models to serve, first by name; inferd reports the others as broken."
    )
    repository_max_model_bytes: Annotated[Size, Group.MODELS] = Field(
        64 << 30,
        ge=1,
        description="Largest size of the files of one model version; inferd reports a larger one as broken and reads "
        "none of its files.",
    )
    model_digests: Annotated[FileIfAny, Group.MODELS] = Field(
        "",
        description="List of SHA-256 digests, as sha256sum writes it, of the files in the repository by their paths in "
        "it. When set, only files that it lists are served, only with that content. inferd reads it at each reload.",
    )
    repository_external_links: Annotated[bool, Group.MODELS] = Field(
        False, description="Follow symbolic links that lead out of the model repository, instead of refusing them."
    )
    repository_control: Annotated[bool, Group.MODELS] = Field(
        False, description="Allow clients to load and unload models (RepositoryModelLoad, RepositoryModelUnload)."
    )
    cache_dir: Annotated[Folder, Group.MODELS] = Field(
        default_factory=default_cache_dir, description="Folder of compiled models."
    )
    cache_max_bytes: Annotated[Size, Group.MODELS] = Field(
        4 << 30,
        ge=0,
        description="Largest size of the cache of compiled models; the least recently used go first. 0 disables the "
        "cache.",
    )
    cpu_threads: Annotated[int, Group.PERFORMANCE, COMMON] = Field(
        0,
        ge=0,
        le=4096,
        description="Threads for CPU inference; 0 means one for each CPU. inferd counts the CPUs that it may use, by "
        "affinity and cgroup quota.",
    )
    tuning: Annotated[Literal["off", "start", "online"], Group.PERFORMANCE, COMMON] = Field(
        "start",
        description="When to tune models. off serves each model by its settings and stored "
        "profile. start also tunes models without a profile, while it serves. online tunes again when service times "
        "drift or the load changes for good.",
    )
    tuning_budget: Annotated[Duration, Group.PERFORMANCE] = Field(
        30.0, ge=1, le=86400, description="Measuring time for tuning one model version on one device."
    )
    profile_dir: Annotated[Folder, Group.PERFORMANCE] = Field(
        default_factory=default_profile_dir, description="Folder of tuning results."
    )
    tuner_control: Annotated[bool, Group.PERFORMANCE] = Field(
        False, description="Allow clients to steer tuning (the Tuner service's Pin, Rollback and Tune)."
    )
    cpu_sharing: Annotated[Literal["common", "split"], Group.PERFORMANCE] = Field(
        "common",
        description="How models share the CPU threads. common lets each model use all of them, in turns when several "
        "models are busy. split gives each model its own part, by share.weight, so that busy models do not compete "
        "for cores.",
    )
    preflight: Annotated[Literal["on", "off"], Group.MODELS] = Field(
        "on",
        description="Whether a child process first reads, compiles and warms up each model under limits. A model file "
        "that crashes or hangs OpenVINO then ends that process, not the daemon. inferd does not repeat a check that "
        "passed with the same content and settings. Use off only when you trust all models.",
    )
    preflight_memory_bytes: Annotated[Size, Group.MODELS] = Field(
        0,
        ge=0,
        description="Private memory of the preflight process, without weights mapped from their file. 0 means half of "
        "the daemon's memory, by cgroup and machine.",
    )
    preflight_timeout: Annotated[Duration, Group.MODELS] = Field(
        300.0, gt=0, le=86400, description="Time for the preflight process to read, compile and warm up a model."
    )
    repository_poll_interval: Annotated[Duration, Group.MODELS, COMMON] = Field(
        0.0,
        ge=0,
        le=86400,
        description="Time between checks for new and changed models. 0 checks on SIGHUP only.",
    )
    load_parallelism: Annotated[int, Group.MODELS] = Field(2, ge=1, le=64, description="Models to load concurrently.")
    queue_max_length: Annotated[int, Group.LIMITS] = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Requests in the queue of one model version; a model's [queue] table overrides it.",
    )
    queue_max_bytes: Annotated[Size, Group.LIMITS] = Field(
        256 << 20,
        ge=1,
        description="Input in the queue of one model version; a model's [queue] table overrides it.",
    )
    client_max_requests: Annotated[int, Group.LIMITS] = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Requests that one client may have queued or running in one model version; 0 sets no quota.",
    )
    client_metadata_key: Annotated[MetadataKey, Group.LIMITS] = Field(
        "inferd-client",
        description="gRPC metadata key that names the client when neither a token nor a certificate does. "
        "client_max_requests counts by this name, with all calls without a name as one client, and sequences of "
        "different names are separate.",
    )
    max_message_bytes: Annotated[Size, Group.LIMITS] = Field(
        64 << 20, ge=1024, le=2**31 - 1, description="Largest gRPC message accepted."
    )
    max_response_bytes: Annotated[Size, Group.LIMITS] = Field(
        256 << 20,
        ge=1024,
        le=2**31 - 1,
        description="Size of a response; a model may compute more from a small request. Clients have a limit of their "
        "own: 4 MiB, unless they raise it.",
    )
    max_incoming_bytes: Annotated[Size, Group.LIMITS] = Field(
        256 << 20,
        ge=1 << 20,
        description="Bytes of requests that are still on their way, over TCP and over all workers, without those of "
        "streams and those that have just begun. Beyond it, the largest are turned away.",
    )
    max_memory_bytes: Annotated[Size, Group.LIMITS] = Field(
        0,
        ge=0,
        description="Private memory of the daemon, with all workers, above which it turns away requests that are still "
        "on their way, or large. 0 means all that its cgroup or the machine has but for a sixteenth and at least "
        "256 MiB.",
    )
    message_timeout: Annotated[Duration, Group.LIMITS] = Field(
        120.0,
        gt=0,
        le=86400,
        description="Time for a call's message to arrive; a stream may wait between its messages.",
    )
    max_tensor_elements: Annotated[int, Group.LIMITS] = Field(
        64 << 20,
        ge=1,
        description="Elements in one input of a request, when the model leaves its shape open; a dimension of 0 "
        "counts as 1.",
    )
    max_tensor_bytes: Annotated[Size, Group.LIMITS] = Field(
        256 << 20,
        ge=1,
        description="Decoded size of one input of a request, when the model leaves its shape open; a BYTES element "
        "counts 64.",
    )
    max_strings: Annotated[int, Group.LIMITS] = Field(
        32 << 10,
        ge=1,
        description="Elements in one BYTES input of a request. Each is handled by itself, and other requests wait "
        "meanwhile: a microsecond for an element.",
    )
    shared_memory: Annotated[Literal["off", "copy", "mapped"], Group.SHARED_MEMORY] = Field(
        "off",
        description="Whether clients on this machine may pass tensors in shared memory (SystemSharedMemoryRegister). "
        "copy copies each input and output once. mapped uses the memory in place; a client that truncates its memory "
        "then ends the daemon, so use it only when you trust all clients. See docs/shared-memory.md.",
    )
    shared_memory_max_regions: Annotated[int, Group.SHARED_MEMORY] = Field(
        256,
        ge=1,
        le=65536,
        description="Shared memory regions that all clients together may register. An authenticated client may have "
        "three quarters of what other clients leave.",
    )
    shared_memory_max_bytes: Annotated[Size, Group.SHARED_MEMORY] = Field(
        1 << 30,
        ge=1,
        description="Shared memory that all clients together may register, with the same rule for one client.",
    )
    max_metadata_bytes: Annotated[Size, Group.LIMITS] = Field(
        16 << 10, ge=1024, le=1 << 20, description="Size of one call's headers (gRPC metadata)."
    )
    max_connections: Annotated[int, Group.CONNECTIONS] = Field(
        16384, ge=1, le=2**31 - 1, description="Connections to the gRPC port; inferd closes further ones at once."
    )
    max_concurrent_streams: Annotated[int, Group.CONNECTIONS] = Field(
        1024,
        ge=1,
        le=2**31 - 1,
        description="Open calls on one connection; further calls wait in the client.",
    )
    connection_idle_timeout: Annotated[Duration, Group.CONNECTIONS] = Field(
        3600.0,
        ge=0,
        le=2_000_000,
        description="Time without a call after which inferd closes a connection; clients reconnect by themselves. 0 "
        "closes none.",
    )
    connection_max_age: Annotated[Duration, Group.CONNECTIONS] = Field(
        0.0,
        ge=0,
        le=2_000_000,
        description="Age at which a connection takes no further calls, so that clients reconnect and spread over the "
        "servers. 0 sets no limit.",
    )
    connection_age_grace: Annotated[Duration, Group.CONNECTIONS] = Field(
        60.0,
        ge=0,
        le=2_000_000,
        description="Time for open calls to end after connection_max_age; 0 sets no limit.",
    )
    stream_max_pending: Annotated[int, Group.LIMITS] = Field(
        256,
        ge=1,
        le=65536,
        description="Unanswered requests in one ModelStreamInfer stream before inferd stops reading it.",
    )
    stream_max_pending_bytes: Annotated[Size, Group.LIMITS] = Field(
        64 << 20,
        ge=1,
        description="Size of unanswered requests, their expected responses and unsent responses in one "
        "ModelStreamInfer stream before inferd stops reading it. The last request read may exceed it.",
    )
    metrics_retention: Annotated[Duration, Group.OBSERVABILITY] = Field(
        300.0,
        ge=0,
        le=86400,
        description="Time that the counters of an unloaded or replaced model version stay in /metrics after the first "
        "scrape of their last values; set it to several scrape intervals. A version loaded again within that time "
        "continues its counters. 0 drops them at once. At most 256 such versions keep their counters; beyond that the "
        "oldest lose them first.",
    )
    triton_metrics: Annotated[bool, Group.OBSERVABILITY] = Field(
        False,
        description="Also export the counters under Triton's names (nv_inference_*), for dashboards made for Triton.",
    )
    probe_interval: Annotated[Duration, Group.HEALTH] = Field(
        30.0,
        ge=0,
        le=86400,
        description="Idle time after which inferd sends a model a health probe: a synthetic inference that no metric "
        "counts. A model that fails a probe it passed before takes no requests until it passes again. 0 sends none.",
    )
    restart_on_device_loss: Annotated[Literal["off", "alone", "always"], Group.HEALTH] = Field(
        "alone",
        description="Whether the daemon, as a systemd service, drains and exits with status 75 to be restarted after "
        "a device is lost: for all its models, after several failed reloads, and when a child process can use the "
        "device. alone restarts only while no model answers, always at any time, off never.",
    )
    drain_timeout: Annotated[Duration, Group.HEALTH] = Field(
        30.0,
        ge=0,
        le=3600,
        description="Time for accepted requests to finish after SIGTERM or SIGINT. Whatever hangs, the process ends at "
        "most 20 s later.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Group.OBSERVABILITY, COMMON] = Field(
        "info", description="Least severe level to log."
    )
    log_format: Annotated[Literal["auto", "json", "console"], Group.OBSERVABILITY] = Field(
        "auto", description="Format of log lines; auto is console on a terminal and json elsewhere."
    )
    request_log: Annotated[Literal["off", "failed", "all"], Group.OBSERVABILITY] = Field(
        "off", description="Requests that get a canonical log line (event=request) with outcome and stage times."
    )
    trace_endpoint: Annotated[TraceEndpoint, Group.OBSERVABILITY] = Field(
        "",
        description="OpenTelemetry collector to send spans to (OTLP over gRPC); empty sends none. Needs the extra "
        "inferd[tracing].",
    )
    trace_ratio: Annotated[float, Group.OBSERVABILITY] = Field(
        0.01,
        ge=0,
        le=1,
        description="Part of the requests without their own trace context to trace; for the others the client's "
        "traceparent decides.",
    )


def of_environment() -> dict[str, str]:
    """The settings given by ``INFERD_*`` variables, by name."""
    return {name: text for variable, text in os.environ.items() if (name := _named(variable)) in Settings.model_fields}


def load(file: Path | None = None, flag_values: Mapping[str, Any] | None = None) -> Settings:
    """Settings from flags, ``INFERD_*``, the TOML ``file`` and the defaults, in that order.

    ``flag_values`` holds the flags given, by setting name. Raises
    ConfigurationError naming the flag, variable or file that the bad value came from.
    """
    flag_values = {k: v for k, v in (flag_values or {}).items() if k in Settings.model_fields}
    in_file = toml_file.read(file, str(file)) if file is not None else {}
    try:
        settings = Settings.model_validate({**in_file, **of_environment(), **flag_values})
    except ValidationError as error:
        problem = problem_of(error, Settings, lambda key: _origin(key, file, in_file, flag_values))
    else:
        conflicts = [
            ConfigurationError(_origin(key, file, in_file, flag_values), key, wrong)
            for key, wrong in _conflicts(settings)
        ]
        if not conflicts:
            return settings
        problem = ConfigurationError.of(conflicts)
    raise problem


def _conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Settings that contradict others, and why."""
    pair = ("tls_cert", "tls_key")
    for given, absent in (pair, pair[::-1]):
        if getattr(settings, given) and not getattr(settings, absent):
            yield given, f"is set without {absent}; set both or neither"
    if settings.tls_client_ca and not settings.tls_cert:
        yield "tls_client_ca", "is set without tls_cert: without TLS no client can present a certificate"
    if not settings.tls_cert and not settings.tokens_file and not settings.allow_insecure_bind:
        for key in _BINDS:
            if not is_loopback(getattr(settings, key)):
                yield (
                    key,
                    f"{getattr(settings, key)} is open to other machines; set tls_cert or tokens_file, or "
                    "allow_insecure_bind if that is intended",
                )


def exposures(settings: Settings) -> Iterator[tuple[str, str]]:
    """What clients on other machines could do: the setting that lets them connect, and the risk."""
    for key in _BINDS:
        if is_loopback(getattr(settings, key)):
            continue
        if not settings.tls_cert:
            what = "all traffic, tokens included" if settings.tokens_file else "all traffic"
            yield key, f"without TLS, others on the network can read and change {what}"
        if not settings.tokens_file and not settings.tls_client_ca:
            yield key, "without tokens or client certificates, any client that can connect may call"


def _named(variable: str) -> str:
    """The setting that ``variable`` would give; empty if it is not one of inferd's."""
    upper = variable.upper()
    return upper.removeprefix(ENV_PREFIX).lower() if upper.startswith(ENV_PREFIX) else ""


def _origin(key: str, file: Path | None, in_file: Mapping[str, Any], flag_values: Mapping[str, Any]) -> str:
    flag, variable = flag_of(key), variable_of(key)
    if key in flag_values:
        return f"flag {flag}"
    if given := next((v for v in os.environ if v.upper() == variable), None):
        return f"variable {given}"
    if key in in_file:
        return str(file)
    return f"flag {flag}, variable {variable} or configuration file"


def unknown_variables() -> dict[str, str]:
    """``INFERD_*`` variables that name no setting, such as typing errors or a container platform's own, each with a
    hint like that of :func:`did_you_mean`."""
    known = {*map(variable_of, Settings.model_fields), CONFIG_VARIABLE, TOKEN_VARIABLE, WORKER_VARIABLE}
    unknown = sorted(v for v in os.environ if v.startswith(ENV_PREFIX) and v not in known)
    return {v: did_you_mean(v, known, ENV_PREFIX) for v in unknown}
