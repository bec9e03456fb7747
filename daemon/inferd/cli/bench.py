"""``inferd bench``: load against any server of the Open Inference Protocol, and two runs side by side."""

import argparse
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from inferd import atomic_file
from inferd.cli import connection
from inferd.errors import ConfigurationError, InferdError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_UNLIMITED = 10_000
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``inferd bench`` and their flags."""
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="put a model under load and measure",
        description="Put a model of a server under load and measure. Latency counts from when a request was due, so "
        "that neither server nor client can hide that it fell behind. Ctrl-C shows what was measured so far.",
        epilog="SWEEP is one load or several: 8, or 1,4,16, or 1:32:2x (times two), or 100:1000:100 (plus a hundred).",
    )
    run.add_argument("model", metavar="MODEL")
    run.add_argument("--model-version", default="", metavar="N", help="which version (default: the newest)")
    run.add_argument(
        "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="the server (default: 127.0.0.1:8001)"
    )
    _load_flags(run.add_argument_group("load"))
    _input_flags(run.add_argument_group("what is sent"))
    _report_flags(run.add_argument_group("what is measured, and where it goes"))
    connection.add_arguments(run)
    compare = commands.add_parser(
        "compare", help="show two runs side by side", description="How many times as much the second run is of what."
    )
    compare.add_argument("first", type=Path, metavar="A.json")
    compare.add_argument("second", type=Path, metavar="B.json")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw both into FILE (.svg, .png); needs matplotlib")


def _load_flags(flags: argparse._ArgumentGroup) -> None:
    kind = flags.add_mutually_exclusive_group()
    kind.add_argument(
        "--concurrency",
        metavar="SWEEP",
        help="closed loop: so many requests in flight, each followed by the next (default: 1)",
    )
    kind.add_argument("--rate", metavar="SWEEP", help="open loop: so many requests a second, whatever is answered")
    flags.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="how the requests of --rate are spread: at random or evenly (default: poisson)",
    )
    flags.add_argument(
        "--seconds",
        type=_length,
        default=10.0,
        metavar="DURATION",
        help="how long each load is seen (default: 10s)",
    )
    flags.add_argument(
        "--warm-up", type=_duration, default=2.0, metavar="DURATION", help="load before that, not counted (default: 2s)"
    )
    flags.add_argument(
        "--processes", type=_count(1, 256), default=1, metavar="N", help="processes that make the load (default: 1)"
    )
    flags.add_argument(
        "--connections", type=_count(1, 10_000), default=4, metavar="N", help="connections of each process (default: 4)"
    )
    flags.add_argument("--stream", action="store_true", help="ModelStreamInfer, one stream a connection, in order")
    flags.add_argument(
        "--shared-memory",
        action="store_true",
        help="pass tensors through system shared memory, to a server on this machine",
    )
    flags.add_argument(
        "--deadline", type=_length, metavar="DURATION", help="each unary request's deadline (default: none)"
    )


def _input_flags(flags: argparse._ArgumentGroup) -> None:
    flags.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="the shape of an input whose dimensions the model leaves open; may be repeated",
    )
    flags.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="an .npz file, an array for each input (default: random)",
    )
    flags.add_argument(
        "--seed", type=_count(0, 2**32 - 1), default=0, metavar="N", help="of what is random (default: 0)"
    )


def _report_flags(flags: argparse._ArgumentGroup) -> None:
    flags.add_argument(
        "--objective", type=_length, metavar="DURATION", help="answers are to come within this, such as 50ms"
    )
    flags.add_argument(
        "--percentile", type=_percentile, default=99.0, metavar="P", help="and so many per cent of them (default: 99)"
    )
    source = flags.add_mutually_exclusive_group()
    source.add_argument(
        "--metrics-url",
        type=_url,
        metavar="URL",
        help="the server's Prometheus page, for its CPU time and memory: http://127.0.0.1:8002/metrics",
    )
    source.add_argument(
        "--pid", type=_count(1, 2**31 - 1), metavar="PID", help="or its process on this machine, with its children"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE")
    flags.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw latency over throughput into FILE (.svg, .png)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; the exit status is 1 when it could not be done or nothing was answered, and 130 after
    Ctrl-C. Raises ConfigurationError."""
    if arguments.plot is not None:
        from inferd.cli import tune_plot

        tune_plot.check()
    if find_spec("hdrh") is None:
        raise ConfigurationError(
            "command bench", "", "it needs hdrhistogram, which is not installed; pip install 'inferd[bench]' brings it"
        )
    try:
        return _compare(arguments) if arguments.bench_command == "compare" else _measure(arguments)
    except ConfigurationError:
        raise
    except InferdError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _measure(arguments: argparse.Namespace) -> int:
    from inferd.bench import report
    from inferd.cli import bench_plot
    from inferd.cli.bench_display import BenchDisplay
    from inferd.load_generator.server_probe import MetricsPage, ProcessTree, ServerProbe
    from inferd.load_generator.session import BenchPlan, measure
    from inferd.rpc.client import InferenceClient

    credentials = connection.credentials_from(arguments)
    objective = (
        None if arguments.objective is None else report.LatencyObjective(arguments.objective, arguments.percentile)
    )
    plan = BenchPlan(
        arguments.server,
        arguments.model,
        arguments.model_version,
        _loads(arguments),
        arguments.stream,
        arguments.shared_memory,
        arguments.processes,
        arguments.connections,
        arguments.warm_up,
        arguments.seconds,
        objective,
        arguments.deadline,
        arguments.seed,
        credentials,
    )
    resources: MetricsPage | ProcessTree | None = None
    if arguments.metrics_url is not None:
        resources = MetricsPage(arguments.metrics_url, credentials)
    elif arguments.pid is not None:
        resources = ProcessTree(arguments.pid)
    for file in (arguments.json, arguments.plot):
        _writable(file)
    console = _console()
    with InferenceClient(plan.target, credentials=credentials) as inference_client:
        feeds = _feeds(inference_client, plan, arguments)
        probe = ServerProbe(inference_client, plan.model, plan.version, resources)
        with BenchDisplay(console, plan.warm_up, plan.seconds) as display:
            found = measure(plan, inference_client, probe, feeds, display)
        display.result(found)
    if arguments.json is not None:
        _write(arguments.json, found)
    if arguments.plot is not None and found.steps:
        bench_plot.draw([found], arguments.plot)
    if found.interrupted:
        return INTERRUPTED
    return 0 if any(step.window.latencies.count for step in found.steps) else 1


def _console() -> Console:
    """Nobody's eyes set a width for what goes into a file."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_UNLIMITED)


def _loads(arguments: argparse.Namespace) -> tuple[Any, ...]:
    from inferd.bench import sweep
    from inferd.bench.load import Closed, Open

    try:
        if arguments.rate is not None:
            rates = sweep.parse(arguments.rate)
            if max(rates) > 1e6:
                raise ValueError("a rate is at most 1000000 a second")
            return tuple(Open(rate, arguments.arrivals) for rate in rates)
        counts = sweep.parse(arguments.concurrency or "1", whole=True)
        if max(counts) > 100_000:
            raise ValueError("a concurrency is at most 100000")
        return tuple(Closed(int(n)) for n in counts)
    except ValueError as error:
        flag = "--rate" if arguments.rate is not None else "--concurrency"
        raise ConfigurationError(f"flag {flag}", "", str(error), "8, 1,4,16, 1:32:2x or 100:1000:100") from None


def _feeds(inference_client: Any, plan: Any, arguments: argparse.Namespace) -> Any:
    import numpy as np

    from inferd.bench import inputs

    specs = inference_client.model_metadata(plan.model, plan.version).inputs
    if arguments.input is None:
        return inputs.synthetic_inputs(plan.model, specs, dict(arguments.shape), arguments.seed)
    try:
        # Only arrays of numbers and of fixed-length strings: objects would be code.
        with np.load(arguments.input, allow_pickle=False) as file:
            return inputs.given_inputs(plan.model, specs, {name: file[name] for name in file.files})
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{arguments.input} can't be read: {error}"
        raise ConfigurationError("flag --input", "", problem, "an .npz file") from None


def _compare(arguments: argparse.Namespace) -> int:
    from inferd.bench.comparison import compare
    from inferd.cli import bench_display, bench_plot

    runs = [_read(file) for file in (arguments.first, arguments.second)]
    names = (arguments.first.stem, arguments.second.stem)
    console = _console()
    bench_display.comparison(console, runs[0], runs[1], names)
    if arguments.plot is not None:
        bench_plot.draw(runs, arguments.plot, names)
    return 0 if compare(runs[0], runs[1]) else 1


def _read(file: Path) -> Any:
    from inferd.bench import report

    try:
        return report.run_of(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(str(file), "", error.strerror or "can't be read") from None
    except ValueError as error:
        raise ConfigurationError(str(file), "", str(error)) from None


def _write(file: Path, found: Any) -> None:
    from inferd.bench import report

    text = json.dumps(report.document(found), indent=1)
    try:
        atomic_file.write(file, f"{text}\n".encode())
    except OSError as error:
        raise ConfigurationError("flag --json", "", f"{file} can't be written: {error.strerror}") from None


def _writable(file: Path | None) -> None:
    # Told now, rather than after minutes of measuring.
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigurationError("flag --json or --plot", "", f"{file.absolute().parent} is no folder")


# -- what flags allow -------------------------------------------------------------


def _duration(text: str) -> float:
    """Seconds of ``50ms``, ``2s`` or ``1.5``."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)(us|ms|s|m)?", text.strip())
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a duration such as 50ms, 2s or 1m")
    return seconds


def _length(text: str) -> float:
    """A duration above nothing."""
    if not (seconds := _duration(text)):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a duration above 0")
    return seconds


def _percentile(text: str) -> float:
    try:
        percentile = float(text)
    except ValueError:
        percentile = 0.0
    if not 0 < percentile <= 100:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: above 0, at most 100")
    return percentile


def _count(least: int, most: int) -> Any:
    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number of {least}..{most}")
        return number

    return count


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition("=")
    if not name or not re.fullmatch(r"[0-9]+(,[0-9]+)*", dims):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: NAME=N,N such as images=1,3,224,224")
    return name, tuple(int(n) for n in dims.split(","))


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://\S+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: such as http://127.0.0.1:8002/metrics")
    return text
