"""``inferd bench`` on a terminal and elsewhere: its flags, its output and its plots."""

import argparse
import io
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from inferd.bench.load import Closed, Open
from inferd.bench.report import BenchRun, LatencyObjective, document
from inferd.cli import bench, bench_display, bench_plot
from inferd.cli.bench_display import BenchDisplay
from inferd.cli.main import main
from inferd.errors import ConfigurationError
from tests.bench.runs import SILENT, TOLD, run, step, window

OBJECTIVE = LatencyObjective(0.025, 99.0)
SWEEP = run(
    step(Closed(1), window([5] * 100), TOLD, OBJECTIVE),
    step(Closed(8), window([10] * 200, in_time=199), TOLD, OBJECTIVE),
    step(Closed(64), window([90] * 210, errors={"RESOURCE_EXHAUSTED": 30}, in_time=0), TOLD, OBJECTIVE),
    objective=OBJECTIVE,
)


def shown(show: Callable[[Console], object], width: int = 80, *, terminal: bool = False) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


def result(found: BenchRun, width: int = 80) -> str:
    return shown(lambda console: BenchDisplay(console, 2.0, 10.0).result(found), width)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


# -- what was found ---------------------------------------------------------------------------


def test_each_load_has_a_line_with_throughput_goodput_and_latency() -> None:
    lines = [line.split() for line in result(SWEEP).splitlines()]
    assert ["8", "in", "flight", "200", "199", "99.5", "met", "10.0", "10.0", "10.0", "10.0", "10.0", "0"] in lines
    assert ["64", "in", "flight", "210", "0", "0", "missed", *["90.0"] * 5, "12.5"] in lines


def test_the_tables_fit_a_terminal_of_eighty_columns() -> None:
    assert "…" not in result(SWEEP)
    assert "…" not in result(
        run(step(Open(99999, "constant"), window([59999], lags=(1,)), TOLD, OBJECTIVE), objective=OBJECTIVE)
    )


def test_stages_are_the_servers_and_the_rest_is_beyond_it() -> None:
    lines = [line.split() for line in result(run(step(server=TOLD))).splitlines()]
    # The mean is 20 ms, of which the server knows 10.5.
    assert ["1", "in", "flight", "1.00", "2.00", "3.00", "4.00", "10.5", "9.50", "2.50"] in lines


def test_a_silent_server_leaves_the_clients_own_figures() -> None:
    text = result(run(step(server=SILENT)))
    assert "at the server" not in text
    assert "server CPU" not in text
    assert "client CPU" in text


def test_the_load_with_the_most_answers_in_time_is_named() -> None:
    assert result(SWEEP).splitlines()[-1] == "99 % within 25 ms: highest goodput at 8 in flight, 199.0/s"
    missed = replace(SWEEP, steps=SWEEP.steps[2:] * 2)
    assert result(missed).splitlines()[-1] == "99 % within 25 ms: met under none of these loads"


def test_errors_are_shown_by_code_and_doubts_as_warnings() -> None:
    text = result(run(step(Open(5, "poisson"), window(errors={"UNAVAILABLE": 2}, lags=[90], busiest=0.99))))
    assert "5/s: of 5 requests 2 UNAVAILABLE\n" in text
    assert "give it more --processes" in text
    assert "requests left up to 90 ms late" in text


def test_a_percentile_without_a_response_beyond_it_is_dim() -> None:
    out = io.StringIO()
    BenchDisplay(Console(file=out, width=100, force_terminal=True), 2.0, 10.0).result(
        run(step(seen=window([10] * 500)))
    )
    # p50, p90 and p99 are not dim, p99.9 of 500 is.
    assert out.getvalue().count("\x1b[2m") == 1


def test_an_interrupted_run_says_so() -> None:
    assert "interrupted: the last load was measured for 1 s" in result(run(step(), interrupted=True))
    assert result(run(interrupted=True)) == "interrupted before anything was measured\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (0.5, "0.500"),
        (12.34, "12.3"),
        (123456.0, "123456"),
        (0.00012, "0.00012"),
        (-2500.0, "-2500"),
        (9.999, "10.0"),
    ],
)
def test_figures_are_written_as_people_do(number: float, text: str) -> None:
    assert bench_display.figure(number) == text


# -- while it goes on -------------------------------------------------------------------------


def going_on(console: Console) -> None:
    with BenchDisplay(console, 2.0, 10.0) as display:
        display.begin(run(), Closed(8))
        display.tick(1.0, 100, 0)
        display.tick(3.0, 500, 7)
        display.begin(run(step()), Open(50, "poisson"))
        display.tick(13.0, 0, 0)


def test_elsewhere_than_on_a_terminal_a_step_is_a_line() -> None:
    assert shown(going_on) == "8 in flight...\n50/s...\n"


def test_on_a_terminal_rate_errors_and_time_left_are_seen() -> None:
    text = shown(going_on, 100, terminal=True)
    assert "warming up, 11 s left" in text
    assert "measuring, 9 s left" in text
    assert "200/s" in text
    assert "7 failed" in text
    assert "waiting for the last responses" in text


# -- two runs ---------------------------------------------------------------------------------


def test_two_runs_are_compared_load_by_load() -> None:
    faster = replace(SWEEP, steps=(step(Closed(1), window([5] * 200), TOLD, OBJECTIVE),))
    text = shown(lambda console: bench_display.comparison(console, SWEEP, faster, ("before", "after")))
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "in", "flight", "before", "100", "100", *["5.00"] * 3, "2000", "300"] in lines
    assert ["after", "200", "200", *["5.00"] * 3, "2000", "300"] in lines
    assert ["ratio", "2.00x", "2.00x", *["1.00x"] * 5] in lines
    assert lines[-1] == ["only", "in", "one", "of", "them:", "8", "in", "flight,", "64", "in", "flight"]


def test_compare_reads_documents_and_fails_without_a_shared_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("a.json", "b.json", "c.json")]
    for file, found in zip(files, (SWEEP, SWEEP, run(step(Closed(5)))), strict=True):
        Path(file).write_text(json.dumps(document(found)))
    assert main(["bench", "compare", files[0], files[1]]) == 0
    assert "1.00x" in capsys.readouterr().out
    assert main(["bench", "compare", files[0], files[2]]) == 1
    assert "share no load" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "says"), [("{}", "not written by inferd bench"), ("nonsense", "Expecting value")])
def test_a_file_that_is_not_a_run_is_one_sentence_and_status_78(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    assert main(["bench", "compare", str(file), str(file)]) == 78
    assert capsys.readouterr().err.startswith(f"inferd: {file}: {says}")
    assert main(["bench", "compare", str(tmp_path / "absent"), str(file)]) == 78
    assert "No such file" in capsys.readouterr().err


# -- drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "runs",
    [(SWEEP,), (SWEEP, SWEEP), (run(step()),), (run(step(seen=window(()))),)],
    ids=["sweep", "two", "one", "none"],
)
def test_runs_are_drawn(runs: tuple[BenchRun, ...], tmp_path: Path) -> None:
    file = tmp_path / "folder" / "run.png"
    bench_plot.draw(runs, file, ("a", "b"))
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (1320, 638)


def test_the_format_is_that_of_the_ending(tmp_path: Path) -> None:
    bench_plot.draw([SWEEP], tmp_path / "run.svg")
    assert ElementTree.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")
    with pytest.raises(ConfigurationError, match="can't be written"):
        bench_plot.draw([SWEEP], tmp_path / "run.nonsense")


def test_missing_matplotlib_is_reported_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"inferd\[plot\]"):
        bench.run(parsed("run", "m", "--plot", "x.png"))


def test_without_the_histogram_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'inferd\[bench\]'"):
        bench.run(parsed("run", "m"))


# -- flags ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("2s", 2.0), ("1.5", 1.5), ("1m", 60.0), ("250us", 0.00025), (".5s", 0.5)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parsed("run", "m", "--objective", text).objective == pytest.approx(seconds)


@pytest.mark.parametrize(
    "flags",
    [
        ("--objective", "0"),
        ("--objective", "-1s"),
        ("--objective", "soon"),
        ("--seconds", "0"),
        ("--percentile", "0"),
        ("--percentile", "101"),
        ("--processes", "0"),
        ("--shape", "x"),
        ("--shape", "x=1,-1"),
        ("--metrics-url", "file:///etc/passwd"),
        ("--concurrency", "1", "--rate", "1"),
        ("--pid", "1", "--metrics-url", "http://a/"),
    ],
)
def test_flags_that_make_no_sense_are_usage_errors(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("run", "m", *flags)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_shape_belongs_to_an_input() -> None:
    assert parsed("run", "m", "--shape", "a=b=1,3", "--shape", "y=2").shape == [("a=b", (1, 3)), ("y", (2,))]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--concurrency", "1:x"), "flag --concurrency: '1:x' is neither"),
        (("--concurrency", "0.5"), "numbers that are not whole"),
        (("--concurrency", "1000000"), "at most 100000"),
        (("--rate", "0"), "flag --rate: '0' is not a positive number"),
        (("--rate", "1e9"), "at most 1000000 a second"),
        (("--json", "/nowhere/at/all/a.json"), "is not a folder"),
    ],
)
def test_impossible_options_are_reported_before_any_server_is_called(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        bench.run(parsed("run", "m", "--server", "127.0.0.1:1", *flags))


def test_an_absent_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", "m", "--server", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("inferd: UNAVAILABLE: ")
