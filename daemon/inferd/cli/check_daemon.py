"""What would keep a daemon with these settings from starting, or is worth a warning, beside its models."""

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

# A socket's path in the file system, of which the last byte ends it: sys/un.h.
_LONGEST_SOCKET = 107


def problems(settings: Settings) -> Iterator[ConfigurationError]:
    """All for which ``inferd serve`` would end with these settings. A port that is in use now is none: the daemon that
    is checked for may be running."""
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
        yield ConfigurationError("metrics_bind", "", f"has port {port}, as grpc_bind has")
    if worker_count(settings) > 1 and (why := _no_sockets()):
        yield ConfigurationError("variable TMPDIR", "", why)


def warnings(settings: Settings) -> Iterator[str]:
    """What the daemon would say of its settings at its start, and folders that it could not write to."""
    yield from (f"{name}: unknown environment variable{hint}" for name, hint in unknown_variables().items())
    yield from (f"{setting}: {what}" for setting, what in exposures(settings))
    if oddity := Repository.of(settings).oddity():
        yield f"model_repository: {settings.model_repository} {oddity}"
    folders = {"profile_dir": settings.profile_dir}
    if settings.cache_max_bytes:
        folders["cache_dir"] = settings.cache_dir
    for setting, folder in sorted(folders.items()):
        if (why := _unwritable(folder)) is not None:
            yield f"{setting}: {folder} {why}; nothing is kept there"


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
                # In use, by the daemon itself perhaps.
                if error.errno != errno.EADDRINUSE:
                    why = error.strerror
                    continue
            return None
    return why


def _no_sockets() -> str | None:
    """Why workers could have no sockets in the folder for temporary files; None where they can."""
    try:
        with tempfile.TemporaryDirectory(prefix="inferd-") as folder:
            path = WorkerIdentity(999, 1000, Path(folder)).socket("notify")
    except OSError as error:
        return f"no folder for the sockets of workers: {error.strerror}"
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        return f"the path of sockets in {path.parent} is too long, {_LONGEST_SOCKET} bytes may be"
    return None


def _unwritable(folder: Path) -> str | None:
    """Why files could not be kept in ``folder``, which need not be there yet; None where they can."""
    present = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not present.is_dir():
        return f"can't be made: {present} is no folder" if present != folder else "is no folder"
    return None if os.access(present, os.W_OK | os.X_OK) else "can't be written to"
