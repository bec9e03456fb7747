"""``inferd top``: what a running daemon is doing, as its status page shows it, in a terminal."""

import argparse
import http.client
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live as Screen

from inferd.cli import connection
from inferd.cli.parser import duration
from inferd.cli.top_display import CURVE, duration_text, explanation, render, render_explanation
from inferd.errors import InferdError, one_line
from inferd.metrics import record_json
from inferd.metrics.rolling import ServerView
from inferd.security.client_credentials import NO_CREDENTIALS, ClientCredentials
from inferd.security.tls_mismatch import tls_mismatch

_PATIENCE = 3.0
_LARGEST = 64 << 20
# Output into a file has no terminal width to fit.
_UNLIMITED = 10_000

_QUIT = ("q", "Q", "\x04")
_EXPLAIN = "?"


class StatusUnavailable(InferdError):
    """The daemon could not be asked for its figures."""

    def __init__(self, address: str, problem: str) -> None:
        self.address, self.problem = address, problem
        super().__init__(f"{address}: {problem}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``inferd top``."""
    parser.add_argument(
        "--metrics-address",
        type=_address,
        default="127.0.0.1:8002",
        metavar="HOST:PORT",
        help="The daemon's metrics_bind (default: 127.0.0.1:8002)",
    )
    parser.add_argument(
        "--interval",
        type=duration(0.1, 3600),
        default=1.0,
        metavar="DURATION",
        help="Time between two readings (default: 1s)",
    )
    parser.add_argument(
        "--once", action="store_true", help="Print one table and exit; the default when the output is no terminal"
    )
    parser.add_argument("--json", action="store_true", help="Print the values as one line of JSON and exit")
    connection.add_arguments(parser)
    parser.epilog = "\n".join(("Columns:", *(f"  {line}" for line in explanation())))


def run(arguments: argparse.Namespace) -> int:
    """Show the figures until q or Ctrl-C, or once; the exit status is 1 when there are none to begin with."""
    address: str = arguments.metrics_address
    credentials = connection.credentials_from(arguments)
    try:
        body = fetch(address, credentials=credentials)
        view = view_of(address, body)
    except StatusUnavailable as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(body, separators=(",", ":")))
        return 0
    console = Console()
    if not arguments.once and console.is_terminal and not console.is_dumb_terminal:
        _watch(console, address, arguments.interval, view, credentials)
        return 0
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_UNLIMITED)
    console.print(render(view, console.width))
    return 0


def read(address: str, since: int = 0, credentials: ClientCredentials = NO_CREDENTIALS) -> ServerView:
    """The figures of the daemon whose metrics port is at ``address``, as :func:`fetch` has them."""
    return view_of(address, fetch(address, since, credentials))


def view_of(address: str, body: dict[str, Any]) -> ServerView:
    """``body`` as a view. Raises StatusUnavailable where it lacks something, as that of another release may."""
    try:
        return record_json.decode(ServerView, body)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StatusUnavailable(address, "the daemon's status data has another format; use the same release") from None


def fetch(address: str, since: int = 0, credentials: ClientCredentials = NO_CREDENTIALS) -> dict[str, Any]:
    """The answer of ``/status.json`` on the metrics port at ``address``; histories from reading ``since`` on.

    Raises StatusUnavailable, and ConfigurationError where a file of ``credentials`` can't be used.
    """
    from inferd.config.daemon import split_host_port

    host, port = split_host_port(address)
    context, headers = credentials.context(), {"Authorization": credentials.authorization} if credentials.token else {}
    asking = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    try:
        if context is not None:
            asking.connect()
            asking.sock = context.wrap_socket(asking.sock, server_hostname=credentials.server_name or host)
        asking.request("GET", f"/status.json?since={since}", headers=headers)
        response = asking.getresponse()
        body = response.read(_LARGEST)
    except (http.client.HTTPException, OSError) as error:
        if mismatch := tls_mismatch(address, tls=context is not None):
            raise StatusUnavailable(*mismatch.split(" ", 1)) from None
        if isinstance(error, OSError):
            raise StatusUnavailable(address, f"no daemon answers: {error.strerror or error}") from None
        raise _foreign(address) from None
    finally:
        asking.close()
    if response.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise StatusUnavailable(address, one_line(body.decode(errors="replace").strip()))
    if response.status == http.client.SERVICE_UNAVAILABLE:
        raise StatusUnavailable(address, "no status data yet")
    try:
        answer: Any = json.loads(body)
    except ValueError:
        raise _foreign(address) from None
    if not isinstance(answer, dict) or answer.get("service") != "inferd":
        raise _foreign(address)
    return answer


def _foreign(address: str) -> StatusUnavailable:
    return StatusUnavailable(address, "not the metrics port of inferd, or its status page is off")


def _watch(console: Console, address: str, interval: float, view: ServerView, credentials: ClientCredentials) -> None:
    # A supervisor's signal, too, is to leave the terminal as it was.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    seen, warning = time.monotonic(), ""
    due = seen + interval
    explaining = False
    try:
        with _keys() as pressed, Screen(console=console, screen=True, auto_refresh=False) as screen:
            while True:
                now = time.monotonic()
                said = f"{warning}; values are {duration_text(now - seen)} old" if warning else ""
                screen.update(
                    render_explanation(console.width, console.height)
                    if explaining
                    else render(view, console.width, console.height, said),
                    refresh=True,
                )
                # Redraw at least once a second, so that a resized terminal is filled.
                key = pressed(min(1.0, max(0.0, due - now)))
                if key in _QUIT:
                    return
                explaining ^= key == _EXPLAIN
                if not key and time.monotonic() < due:
                    continue
                try:
                    view = read(address, max(0, view.sequence + 1 - CURVE), credentials)
                    seen, warning = time.monotonic(), ""
                except StatusUnavailable as error:
                    warning = str(error)
                due = time.monotonic() + interval
    except KeyboardInterrupt:
        return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key at most and gives it, or "" where none was pressed."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return
    # Not on every system.
    import termios
    import tty

    terminal = sys.stdin.fileno()

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        # A terminal that went away reads as its end, which is Ctrl-D.
        return (os.read(terminal, 1).decode(errors="replace") or "\x04") if ready else ""

    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


# -- what flags allow -------------------------------------------------------------


def _address(text: str) -> str:
    # Not for --help, which is to be quick.
    from inferd.config.daemon import split_host_port

    try:
        host, port = split_host_port(text)
    except ValueError:
        host, port = "", 0
    if not host or not 0 < port < 1 << 16:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: HOST:PORT, such as 127.0.0.1:8002 or [::1]:8002")
    return text
