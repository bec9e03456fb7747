"""The daemon's settings. A flag beats a variable, a variable the file, the file the default.

Each setting is declared here and nowhere else: the flag ``--some-name``, the variable
``INFERD_SOME_NAME``, the file key ``some_name``, ``--help`` and docs/configuration.md all
come from the declaration.
"""

import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from inferd.config import toml_file
from inferd.config.allowed import Allowed
from inferd.config.problem import problem_of
from inferd.errors import ConfigurationError

ENV_PREFIX = "INFERD_"
CONFIG_VARIABLE = "INFERD_CONFIG"
# Read by the commands that call a daemon.
TOKEN_VARIABLE = "INFERD_TOKEN"  # noqa: S105 - a variable's name
# Set by a daemon of several processes for each of them.
WORKER_VARIABLE = "INFERD_WORKER"


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
    # Path("") is the working directory, which nobody means by a variable left empty.
    if value == "":
        raise ValueError
    return value


_BINDS = ("grpc_bind", "metrics_bind")
_HOST_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^:\[\]\s]+):(?P<port>[0-9]{1,5})")
HostPort = Annotated[
    str,
    AfterValidator(_host_port),
    Allowed("HOST:PORT with a port of 0..65535, such as 127.0.0.1:8001 or [::1]:8001"),
]
Workers = Annotated[
    int, BeforeValidator(_workers), Field(ge=0, le=512), Allowed("auto, or a number of processes of 1..512")
]
MetadataKey = Annotated[
    str,
    AfterValidator(_metadata_key),
    Allowed("1 to 64 of a-z, 0-9, '_', '-' and '.', not beginning with grpc- nor ending in -bin"),
]
TraceEndpoint = Annotated[
    str,
    AfterValidator(_trace_endpoint),
    Allowed("http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:4317, or nothing"),
]
Folder = Annotated[Path, BeforeValidator(_folder), Allowed("the path of a folder")]
FileIfAny = Annotated[str, Allowed("the path of a file, or nothing")]


def split_host_port(bind: str) -> tuple[str, int]:
    """``("::1", 8001)`` for ``"[::1]:8001"``; ``bind`` was validated as HostPort."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(bind: str) -> bool:
    """Whether only this machine can connect to ``bind``, as far as the address alone says."""
    host, _ = split_host_port(bind)
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # another name may be any address, and another one tomorrow


def default_cache_dir() -> Path:
    """`$CACHE_DIRECTORY` (systemd sets it), else `$XDG_CACHE_HOME/inferd`, else `~/.cache/inferd`."""
    return _own_folder("cache_dir", "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache")


def default_profile_dir() -> Path:
    """`profiles` in `$STATE_DIRECTORY` (systemd's), else in `$XDG_STATE_HOME/inferd` or `~/.local/state/inferd`."""
    return _own_folder("profile_dir", "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state") / "profiles"


def _own_folder(setting: str, assigned: str, base: str, below_home: str) -> Path:
    """Where systemd assigned a folder, else where the XDG base directory specification puts it."""
    if folder := os.environ.get(assigned):
        return Path(folder.split(":")[0])
    if folder := os.environ.get(base):
        return Path(folder) / "inferd"
    try:
        return Path.home() / below_home / "inferd"
    except RuntimeError:
        # A container that runs as a made-up user: no HOME and no entry in the user database.
        raise ConfigurationError("settings", setting, "has no default, as this user has no home folder") from None


class Settings(BaseSettings):
    """All settings of the process."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        validate_default=True,
        cli_kebab_case=True,
        cli_implicit_flags="dual",
        cli_show_env_vars=True,
        protected_namespaces=(),
    )

    model_repository: Folder = Field(description="Folder that holds the models: <model>/<version>/model.<ext>.")
    grpc_bind: HostPort = Field(
        "127.0.0.1:8001", description="HOST:PORT of the gRPC endpoint; port 0 picks a free one."
    )
    metrics_bind: HostPort = Field(
        "127.0.0.1:8002", description="HOST:PORT of /metrics, /healthz and /readyz; port 0 picks a free one."
    )
    workers: Workers = Field(
        1,
        description="Processes that serve behind one gRPC port, each on CPUs of its own and with its own copy of the "
        "models; auto has as many as there are 16 CPUs, none across NUMA nodes. For machines whose cores one Python "
        "interpreter can't feed.",
    )
    reuse_port: bool = Field(
        False,
        description="Share the gRPC port with another daemon of the same user that shares it too (SO_REUSEPORT), for "
        "a roll-over; without it a port that is in use is an error.",
    )
    tls_cert: FileIfAny = Field(
        "",
        description="Certificate of both ports, PEM, with those between it and its CA after it; empty serves in the "
        "clear. It and the next two are read again when they change.",
    )
    tls_key: FileIfAny = Field("", description="Key of tls_cert, PEM, without a password.")
    tls_client_ca: FileIfAny = Field(
        "",
        description="CAs of clients, PEM. Where it is set, the gRPC port takes clients with a certificate of theirs "
        "only, and the metrics port wants one or a token.",
    )
    tokens_file: FileIfAny = Field(
        "",
        description="TOML file of the callers that are known, their secrets' hashes and what they may do; where it is "
        "set, nobody else may call. Read again when it changes.",
    )
    allow_insecure_bind: bool = Field(
        False, description="Allow a port to be open to other machines with neither TLS nor tokens."
    )
    repository_max_models: int = Field(
        1024, ge=1, le=1_000_000, description="Models that are served, by name; those beyond are reported as broken."
    )
    repository_external_links: bool = Field(
        False, description="Follow symbolic links that lead out of the model repository, instead of refusing them."
    )
    repository_control: bool = Field(
        False, description="Allow clients to load and unload models (RepositoryModelLoad, RepositoryModelUnload)."
    )
    cache_dir: Folder = Field(default_factory=default_cache_dir, description="Folder of compiled-model blobs.")
    cache_max_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Size cap in bytes of the compiled-model cache; least recently used go first; 0 disables it.",
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        le=4096,
        description="Threads for CPU inference; 0 means the CPUs this process may use, by affinity and cgroup quota.",
    )
    tuning: Literal["off", "start", "online"] = Field(
        "start",
        description="off serves each model as its settings and its stored profile say; start also tunes models that "
        "have no profile, beside serving; online tunes again when service times drift or the load changes for good.",
    )
    tuning_budget: float = Field(
        30.0, ge=1, le=86400, description="Seconds of measuring that tuning one model version on one device may take."
    )
    profile_dir: Folder = Field(default_factory=default_profile_dir, description="Folder of what tuning found.")
    tuner_control: bool = Field(
        False, description="Allow clients to steer tuning (the Tuner service's Pin, Rollback and Tune)."
    )
    cpu_sharing: Literal["common", "split"] = Field(
        "common",
        description="common lets each model use all CPU threads, and they take turns when several want them; split "
        "gives each its own part, by share.weight, so that models busy at the same time do not fight for cores.",
    )
    preflight: Literal["on", "off"] = Field(
        "on",
        description="on has a child process read, compile and warm up each model first, under limits, so that a model "
        "file that crashes or hangs its reader ends that process and not the daemon; what has passed before, with the "
        "same content and settings, is not tried again. off is for models that are all trusted.",
    )
    preflight_memory_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of private memory that the child process may use, besides weights mapped from their file; "
        "0 means half of what the daemon may use, by cgroup and machine.",
    )
    preflight_timeout: float = Field(
        300.0, gt=0, le=86400, description="Seconds that reading, compiling and warming up may take the child process."
    )
    repository_poll_interval: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Seconds between looks at the model repository for changes, which are then loaded as on SIGHUP; "
        "0 looks on SIGHUP only.",
    )
    load_parallelism: int = Field(2, ge=1, le=64, description="Models loaded at the same time.")
    queue_max_length: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Requests that may wait for one model version; a model's [queue] table overrides it.",
    )
    queue_max_bytes: int = Field(
        256 << 20,
        ge=1,
        description="Bytes of input that may wait for one model version; a model's [queue] table overrides it.",
    )
    client_max_requests: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Requests one client may have waiting or running at one model version; 0 sets no quota.",
    )
    client_metadata_key: MetadataKey = Field(
        "inferd-client",
        description="gRPC metadata key that names the client where it has to prove no name: client_max_requests counts "
        "by it, calls without it as one, and sequences are apart by it.",
    )
    max_message_bytes: int = Field(
        64 << 20, ge=1024, le=2**31 - 1, description="Largest gRPC message accepted, in bytes."
    )
    max_tensor_elements: int = Field(
        64 << 20,
        ge=1,
        description="Elements of one input of a request, where the model leaves its shape open; a dimension of 0 "
        "counts as 1.",
    )
    max_tensor_bytes: int = Field(
        256 << 20,
        ge=1,
        description="Bytes of one input of a request once decoded, where the model leaves its shape open; an element "
        "of BYTES counts 64.",
    )
    shared_memory: Literal["off", "copy", "mapped"] = Field(
        "off",
        description="copy takes inputs from, and puts outputs into, shared memory that clients on this machine have "
        "registered (SystemSharedMemoryRegister), by one copy each; mapped uses it in place, where a client that "
        "truncates its memory ends the daemon: for clients that are all trusted. See docs/shared-memory.md.",
    )
    shared_memory_max_regions: int = Field(
        256,
        ge=1,
        le=65536,
        description="Regions of shared memory that may be registered, all clients' together; one client that has "
        "proved its name may have three quarters of what other clients leave.",
    )
    shared_memory_max_bytes: int = Field(
        1 << 30,
        ge=1,
        description="Bytes of shared memory that may be registered, all clients' together, and of one client likewise.",
    )
    max_metadata_bytes: int = Field(
        16 << 10, ge=1024, le=1 << 20, description="Bytes of the headers (gRPC metadata) of one call."
    )
    max_connections: int = Field(
        16384, ge=1, le=2**31 - 1, description="Connections to the gRPC port; further ones are closed at once."
    )
    max_concurrent_streams: int = Field(
        4096,
        ge=1,
        le=2**31 - 1,
        description="Calls that one connection may have open; further ones wait at the client until one has ended.",
    )
    connection_idle_timeout: float = Field(
        3600.0,
        ge=0,
        le=2_000_000,
        description="Seconds without a call after which a connection is closed, which clients open again by "
        "themselves; 0 never closes one.",
    )
    connection_max_age: float = Field(
        0.0,
        ge=0,
        le=2_000_000,
        description="Seconds after which a connection takes no further calls, so that clients connect anew and spread "
        "over the servers there are; 0 sets no age.",
    )
    connection_age_grace: float = Field(
        60.0,
        ge=0,
        le=2_000_000,
        description="Seconds that calls open at connection_max_age get to end; 0 sets no limit.",
    )
    stream_max_pending: int = Field(
        256,
        ge=1,
        le=65536,
        description="Unanswered requests one ModelStreamInfer stream may have before it is read no further.",
    )
    stream_max_pending_bytes: int = Field(
        64 << 20,
        ge=1,
        description="Bytes of unanswered requests, of their answers to come and of answers not yet sent that one "
        "ModelStreamInfer stream may have before it is read no further; the last request read may exceed it.",
    )
    metrics_retention: float = Field(
        300.0,
        ge=0,
        le=86400,
        description="Seconds that the counters of a model version stay in /metrics after it was unloaded or replaced, "
        "from the first scrape that had their last values: several scrape intervals. A version that is loaded again "
        "meanwhile counts on. 0 shows none of what is gone. At most 256 versions that are gone keep their counters; "
        "beyond that, those that left first lose them at once.",
    )
    triton_metrics: bool = Field(
        False,
        description="Also export Triton's names (nv_inference_*) of what it counts, for dashboards made for it.",
    )
    probe_interval: float = Field(
        30.0,
        ge=0,
        le=86400,
        description="Seconds without a run of its own after which a model gets a health probe, a synthetic inference "
        "counted nowhere; one that fails what it did well before takes no requests until it does it again. 0: never.",
    )
    restart_on_device_loss: Literal["off", "alone", "always"] = Field(
        "alone",
        description="Whether the daemon, as a systemd service, drains and ends with status 75, to be started anew, "
        "when a device is lost to all models on it, loading them anew has failed several times, and a child process "
        "that tries the device can use it. alone: only while no model answers; always: at all times; off: never.",
    )
    drain_timeout: float = Field(
        30.0, ge=0, le=3600, description="Seconds that accepted requests get to finish after SIGTERM or SIGINT."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Log lines as JSON or for people; auto is for people on a terminal and JSON elsewhere."
    )
    request_log: Literal["off", "failed", "all"] = Field(
        "off", description="Which requests get a canonical log line (event=request) with outcome and stage times."
    )
    trace_endpoint: TraceEndpoint = Field(
        "",
        description="Where an OpenTelemetry collector takes spans (OTLP over gRPC); empty sends none. Needs the extra "
        "inferd[tracing].",
    )
    trace_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Part of the requests without a trace context of their own that is traced; what a client sends "
        "in traceparent decides for the others.",
    )


def flags(parser: Any) -> CliSettingsSource[Any]:
    """Add a flag for each setting to the argparse ``parser``; the result goes to :func:`load`."""
    return CliSettingsSource(Settings, root_parser=parser)


def load(
    file: Path | None = None,
    flag_source: CliSettingsSource[Any] | None = None,
    flag_values: dict[str, Any] | None = None,
) -> Settings:
    """Settings from flags, ``INFERD_*``, the TOML ``file`` and the defaults, in that order.

    ``flag_values`` holds the flags that were given, by setting name. Raises
    ConfigurationError naming the flag, variable or file the bad value came from.
    """
    flag_values = {k: v for k, v in (flag_values or {}).items() if k in Settings.model_fields}
    in_file = toml_file.read(file, str(file)) if file is not None else {}

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature; unused on purpose
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Highest first; the library puts the command line's source before these."""
            return (init_settings, env_settings, InitSettingsSource(settings_cls, in_file))

    try:
        if flag_source is None:
            settings = Layered(**flag_values)
        else:
            settings = Layered(_cli_settings_source=flag_source(parsed_args=flag_values))
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
    """Settings that don't go with the others, and why."""
    pair = ("tls_cert", "tls_key")
    for given, absent in (pair, pair[::-1]):
        if getattr(settings, given) and not getattr(settings, absent):
            yield given, f"is set without {absent}; set both or neither"
    if settings.tls_client_ca and not settings.tls_cert:
        yield "tls_client_ca", "is set without tls_cert: without TLS no client can show a certificate"
    if not settings.tls_cert and not settings.tokens_file and not settings.allow_insecure_bind:
        for key in _BINDS:
            if not is_loopback(getattr(settings, key)):
                yield (
                    key,
                    f"{getattr(settings, key)} is open to other machines; set tls_cert or tokens_file, or "
                    "allow_insecure_bind if that is meant",
                )


def exposures(settings: Settings) -> Iterator[tuple[str, str]]:
    """What those who can connect from other machines could do: the setting that lets them connect, and what."""
    for key in _BINDS:
        if is_loopback(getattr(settings, key)):
            continue
        if not settings.tls_cert:
            what = "what is sent, tokens too" if settings.tokens_file else "what is sent"
            yield key, f"without TLS, others on the network can read and change {what}"
        if not settings.tokens_file and not settings.tls_client_ca:
            yield key, "without tokens or client certificates, whoever can connect may call"


def _origin(key: str, file: Path | None, in_file: dict[str, Any], flag_values: dict[str, Any]) -> str:
    flag, variable = "--" + key.replace("_", "-"), ENV_PREFIX + key.upper()
    if key in flag_values:
        return f"flag {flag}"
    if given := next((v for v in os.environ if v.upper() == variable), None):
        return f"variable {given}"
    if key in in_file:
        return str(file)
    return f"flag {flag}, variable {variable} or configuration file"


def unknown_variables() -> list[str]:
    """``INFERD_*`` variables that name no setting: typing errors, or a container platform's own."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {
        CONFIG_VARIABLE,
        TOKEN_VARIABLE,
        WORKER_VARIABLE,
    }
    return sorted(v for v in os.environ if v.startswith(ENV_PREFIX) and v not in known)
