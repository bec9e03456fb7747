"""What would keep a daemon with these settings from starting, or deserves a warning, apart from its models."""

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from inferd.config.daemon import Settings, exposures, split_host_port, unknown_variables
from inferd.errors import ConfigurationError
from inferd.repository.find import Repository
from inferd.rpc.status import code_of
from inferd.security.credentials import Credentials
from inferd.tracing.sampling import Tracer
from inferd.workers.daemon import worker_count
from inferd.workers.worker_identity import WorkerIdentity

# The length of a socket's path in the file system, including its final NUL: sys/un.h.
_LONGEST_SOCKET = 107


def problems(settings: Settings) -> Iterator[ConfigurationError]:
    """Everything that would make ``inferd serve`` fail with these settings. A port in use is not a problem: the daemon
    that serves with these settings may be running."""
    try:
        Credentials.of(settings)
    except ConfigurationError as error:
        yield from error.every
    try:
        Tracer(settings.trace_endpoint, settings.trace_ratio, lambda error: code_of(error).name).close()
    except ConfigurationError as error:
        yield from error.every
    ports = {key: split_host_port(getattr(settings, key)) for key in ("grpc_bind", "metrics_bind")}
    for key, (host, port) in ports.items():
        if (why := _unbindable(host, port)) is not None:
            yield ConfigurationError(key, "", f"can't listen on {getattr(settings, key)}: {why}")
    (host, port), (metrics_host, metrics_port) = ports.values()
    if port and port == metrics_port and (host == metrics_host or {"0.0.0.0", "::"} & {host, metrics_host}):  # noqa: S104
        yield ConfigurationError("metrics_bind", "", f"has port {port}, the same as grpc_bind")
    if worker_count(settings) > 1 and (why := _no_sockets()):
        yield ConfigurationError("variable TMPDIR", "", why)


def warnings(settings: Settings) -> Iterator[str]:
    """What the daemon would warn about at start, and folders that it could not write to."""
    yield from (f"{name}: unknown environment variable{hint}" for name, hint in unknown_variables().items())
    yield from (f"{setting}: {what}" for setting, what in exposures(settings))
    if oddity := Repository.of(settings).oddity():
        yield f"model_repository: {settings.model_repository} {oddity}"
    folders = {"profile_dir": settings.profile_dir}
    if settings.cache_max_bytes:
        folders["cache_dir"] = settings.cache_dir
    for setting, folder in sorted(folders.items()):
        if (why := _unwritable(folder)) is not None:
            yield f"{setting}: {folder} {why}; inferd will keep nothing there"


def _unbindable(host: str, port: int) -> str | None:
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return error.strerror
    why = None
    for family, kind, _, _, address in places:
        with ExitStack() as stack:
            try:
                probe = stack.enter_context(socket.socket(family, kind))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            except OSError as error:
                # In use, perhaps by the daemon itself.
                if error.errno != errno.EADDRINUSE:
                    why = error.strerror
                    continue
            return None
    return why


def _no_sockets() -> str | None:
    """Why workers could have no sockets in the folder for temporary files; None if they can."""
    try:
        with tempfile.TemporaryDirectory(prefix="inferd-") as folder:
            path = WorkerIdentity(999, 1000, Path(folder)).socket("notify")
    except OSError as error:
        return f"no folder for the sockets of workers: {error.strerror}"
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        return f"the path of sockets in {path.parent} is too long; at most {_LONGEST_SOCKET} bytes are allowed"
    return None


def _unwritable(folder: Path) -> str | None:
    """Why files could not be kept in ``folder``, which need not exist yet; None if they can."""
    present = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not present.is_dir():
        return f"can't be created: {present} is not a folder" if present != folder else "is not a folder"
    return None if os.access(present, os.W_OK | os.X_OK) else "can't be written to"
