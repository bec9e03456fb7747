"""The daemon's settings. A flag beats a variable, a variable the file, the file the default.

Each setting is declared here and nowhere else: the flag ``--some-name``, the variable
``INFERD_SOME_NAME``, the file key ``some_name``, ``--help`` and docs/configuration.md all
come from the declaration.
"""

import os
import re
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
from inferd.config.problem import first_problem
from inferd.errors import ConfigurationError

ENV_PREFIX = "INFERD_"
CONFIG_VARIABLE = "INFERD_CONFIG"


def _host_port(text: str) -> str:
    if not (found := _HOST_PORT.fullmatch(text)) or int(found["port"]) > 65535:
        raise ValueError
    return text


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


_HOST_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^:\[\]\s]+):(?P<port>[0-9]{1,5})")
HostPort = Annotated[
    str,
    AfterValidator(_host_port),
    Allowed("HOST:PORT with a port of 0..65535, such as 127.0.0.1:8001 or [::1]:8001"),
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


def split_host_port(bind: str) -> tuple[str, int]:
    """``("::1", 8001)`` for ``"[::1]:8001"``; ``bind`` was validated as HostPort."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


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
    tune_budget: float = Field(
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
        description="gRPC metadata key that names the client for client_max_requests; calls without it count as one.",
    )
    max_message_bytes: int = Field(
        64 << 20, ge=1024, le=2**31 - 1, description="Largest gRPC message accepted, in bytes."
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
    triton_metrics: bool = Field(
        False,
        description="Also export Triton's names (nv_inference_*) of what it counts, for dashboards made for it.",
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
            return Layered(**flag_values)
        return Layered(_cli_settings_source=flag_source(parsed_args=flag_values))
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        problem = first_problem(_origin(key, file, in_file, flag_values), error, Settings)
    raise problem


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
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(v for v in os.environ if v.startswith(ENV_PREFIX) and v not in known)
