"""``inferd bench``: load any server of the Open Inference Protocol and measure it, or compare two runs."""

import argparse
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferd import atomic_file
from inferd.cli import connection
from inferd.cli.parser import add_command, commands_of, duration, flag_type, integer
from inferd.errors import ConfigurationError, InferdError

if TYPE_CHECKING:
    from rich.console import Console

_DAY = 86_400
_UNLIMITED = 10_000
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``inferd bench`` and their flags."""
    parser.description = "Load any server of the Open Inference Protocol and measure it, or compare two runs."
    commands = commands_of(parser, "bench_command")
    run = add_command(
        commands,
        "run",
        "Load a model and measure",
        "Load a model of a server and measure. Latency counts from the time a request was due, so neither server nor "
        "client can hide a delay. Ctrl-C shows the results so far.",
        epilog="SWEEP is one load or several: 8, or 1,4,16, or 1:32:2x (doubling), or 100:1000:100 (in steps of 100). "
        "DURATION is 20ms, 1.5s, 2m or 1h; a bare number counts seconds.",
        usage="inferd bench run MODEL [OPTIONS]",
    )
    run.add_argument("model", metavar="MODEL")
    run.add_argument(
        "--model-version", default="", metavar="VERSION", help="Version of the model (default: the newest)"
    )
    run.add_argument(
        "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="Server to load (default: 127.0.0.1:8001)"
    )
    _load_flags(run.add_argument_group("Load"))
    _input_flags(run.add_argument_group("Input"))
    _report_flags(run.add_argument_group("Measurement and output"))
    connection.add_arguments(run)
    compare = add_command(commands, "compare", "Show two runs next to each other")
    compare.add_argument("first", type=Path, metavar="A.json", help="Output of inferd bench run --json")
    compare.add_argument("second", type=Path, metavar="B.json", help="The run to compare with it")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="Draw both into FILE (.svg, .png); needs matplotlib")


def _load_flags(flags: argparse._ArgumentGroup) -> None:
    kind = flags.add_mutually_exclusive_group()
    kind.add_argument(
        "--concurrency", metavar="SWEEP", help="Closed loop: requests in flight, each followed by the next (default: 1)"
    )
    kind.add_argument("--rate", metavar="SWEEP", help="Open loop: requests a second, independent of the answers")
    flags.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="How to spread the requests of --rate: at random or evenly (default: poisson)",
    )
    flags.add_argument(
        "--seconds",
        type=duration(0, _DAY, exclusive=True),
        default=10.0,
        metavar="DURATION",
        help="Measuring time of each load (default: 10s)",
    )
    flags.add_argument(
        "--warm-up",
        type=duration(0, _DAY),
        default=2.0,
        metavar="DURATION",
        help="Time of each load before that, not measured (default: 2s)",
    )
    flags.add_argument(
        "--processes", type=integer(1, 256), default=1, metavar="INTEGER", help="Client processes (default: 1)"
    )
    flags.add_argument(
        "--connections",
        type=integer(1, 10_000),
        default=4,
        metavar="INTEGER",
        help="Connections of each process (default: 4)",
    )
    flags.add_argument("--stream", action="store_true", help="Use ModelStreamInfer, one stream a connection, in order")
    flags.add_argument(
        "--shared-memory",
        action="store_true",
        help="Pass tensors through system shared memory, to a server on this machine",
    )
    flags.add_argument(
        "--deadline",
        type=duration(0, _DAY, exclusive=True),
        metavar="DURATION",
        help="Deadline of each unary request (default: none)",
    )


def _input_flags(flags: argparse._ArgumentGroup) -> None:
    flags.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="Shape of an input whose dimensions the model leaves open; repeat it for several inputs",
    )
    flags.add_argument(
        "--input", type=Path, metavar="FILE", help="An .npz file with an array for each input (default: random input)"
    )
    flags.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, metavar="INTEGER", help="Seed of random values (default: 0)"
    )


def _report_flags(flags: argparse._ArgumentGroup) -> None:
    flags.add_argument(
        "--objective",
        type=duration(0, _DAY, exclusive=True),
        metavar="DURATION",
        help="Latency objective, such as 50ms",
    )
    flags.add_argument(
        "--percentile",
        type=flag_type(_percentile, "a number above 0 and up to 100"),
        default=99.0,
        metavar="NUMBER",
        help="Per cent of the answers to meet the objective (default: 99)",
    )
    source = flags.add_mutually_exclusive_group()
    source.add_argument(
        "--metrics-url",
        type=flag_type(_url, "such as http://127.0.0.1:8002/metrics"),
        metavar="URL",
        help="The server's Prometheus page, for its CPU time and memory: http://127.0.0.1:8002/metrics",
    )
    source.add_argument(
        "--pid",
        type=integer(1, 2**31 - 1),
        metavar="INTEGER",
        help="The server's process on this machine, for the same; counts its children",
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="Write all results to FILE")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="Draw latency over throughput into FILE (.svg, .png)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 when it could not run or no request succeeded, and 130 after Ctrl-C.
    Raises ConfigurationError."""
    if arguments.plot is not None:
        from inferd.cli import tune_plot

        tune_plot.check()
    if find_spec("hdrh") is None:
        raise ConfigurationError(
            "command bench", "", "it needs hdrhistogram, which is not installed: pip install 'inferd[bench]'"
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
        probe = ServerProbe(inference_client, plan.model, plan.version, resources=resources)
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


def _console() -> "Console":
    """As wide as the terminal; without a width when it writes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_UNLIMITED)


def _loads(arguments: argparse.Namespace) -> tuple[Any, ...]:
    from inferd.bench import sweep
    from inferd.bench.load import Closed, Open

    try:
        if arguments.rate is not None:
            rates = sweep.parse(arguments.rate)
            if max(rates) > 1e6:
                raise ValueError("the rate must be at most 1000000 a second")
            return tuple(Open(rate, arguments.arrivals) for rate in rates)
        counts = sweep.parse(arguments.concurrency or "1", whole=True)
        if max(counts) > 100_000:
            raise ValueError("the concurrency must be at most 100000")
        return tuple(Closed(int(n)) for n in counts)
    except ValueError as error:
        flag = "--rate" if arguments.rate is not None else "--concurrency"
        raise ConfigurationError(f"flag {flag}", "", str(error), allowed="8, 1,4,16, 1:32:2x or 100:1000:100") from None


def _feeds(inference_client: Any, plan: Any, arguments: argparse.Namespace) -> Any:
    import numpy as np

    from inferd.bench import inputs

    specs = inference_client.model_metadata(plan.model, plan.version).inputs
    if arguments.input is None:
        return inputs.synthetic_inputs(plan.model, specs, dict(arguments.shape), arguments.seed)
    try:
        # Only arrays of numbers and of fixed-length strings: loading objects would run code.
        with np.load(arguments.input, allow_pickle=False) as file:
            return inputs.given_inputs(plan.model, specs, {name: file[name] for name in file.files})
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{arguments.input} can't be read: {error}"
        raise ConfigurationError("flag --input", "", problem, allowed="an .npz file") from None


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
    # Checked now, rather than after minutes of measuring.
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigurationError("flag --json or --plot", "", f"{file.absolute().parent} is not a folder")


# -- what flags allow -------------------------------------------------------------


def _percentile(text: str) -> float:
    if not 0 < (percentile := float(text)) <= 100:
        raise ValueError
    return percentile


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition("=")
    if not name or not re.fullmatch(r"[0-9]+(,[0-9]+)*", dims):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: NAME=N,N such as images=1,3,224,224")
    return name, tuple(int(n) for n in dims.split(","))


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://\S+", text):
        raise ValueError
    return text
