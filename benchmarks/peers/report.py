"""The results as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.peers.results import (
    BENCHMARK_APP,
    BENCHMARK_APP_DEFAULTS,
    COMPUTING_ECHO,
    ECHO,
    FLOOR,
    INFERD,
    INFERD_MAPPED,
    LOAD,
    UNARY,
    Bar,
    Results,
    Share,
    Spread,
    Subject,
    bars,
    ratio,
    shares,
)

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
NAMES = {
    INFERD: "inferd",
    INFERD_MAPPED: "inferd, mapped",
    ECHO: "bare echo",
    COMPUTING_ECHO: "computing echo",
    FLOOR: "C++ floor",
    BENCHMARK_APP: "`benchmark_app`",
    BENCHMARK_APP_DEFAULTS: "`benchmark_app`, its defaults",
    "triton": "Triton",
    "mlserver": "MLServer",
    "kserve": "KServe SDK",
    "ray": "Ray Serve",
    "bentoml": "BentoML",
    "litserve": "LitServe",
}
NONE = "–"


def between_marks(page: str, text: str) -> str:
    """``page`` with ``text`` between its marks; raises ValueError if it lacks them."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def markdown(results: Results, run: Mapping[str, Any]) -> str:
    """All tables. ``run`` has the command's other output."""
    foreign = results.foreign()
    busy = f"; other processes took {foreign.middle:.2f} CPUs at the median of all loops" if foreign else ""
    parts = [
        f"Measured {run['measured']}: {run['rounds']} rounds of {run['seconds']:g} s a cell, {run['threads']} streams "
        f"of one thread each{busy}. Medians over rounds, (least–most).",
        "![Responses a second of each server, for each model.](images/peers.png)",
        "### Targets",
        _targets(bars(results)),
    ]
    if found := shares(results):
        parts += ["### Where it goes", _WHERE, _shares(found)]
    for model in results.models():
        parts += [f"### {model}", _about(results, model, run), _model(results, model)]
    parts += ["### Versions", _table(("what", "version"), run["versions"].items())]
    if run.get("configurations"):
        parts += ["### Configurations", _CONFIGURATIONS, _table(("server", "best"), run["configurations"].items())]
    if run["missing"]:
        parts += ["### Left out", _table(("what", "why"), run["missing"].items())]
    return "\n\n".join(parts) + "\n"


def spread(value: Spread | None, scale: float = 1.0) -> str:
    """Median, minimum and maximum, to three figures."""
    if value is None:
        return NONE
    middle, low, high = (_figure(number * scale) for number in (value.middle, value.low, value.high))
    return f"{middle} ({low}–{high})"


def _targets(found: Iterable[Bar]) -> str:
    verdict = {True: "met", False: "**missed**", None: "not measured"}
    rows = [(b.text, f"{'≥' if b.floor else '≤'} {b.limit:g}", spread(b.figure), verdict[b.met]) for b in found]
    return _table(("figure", "target", "measured", ""), rows)


_WHERE = f"""CPU at {LOAD} in flight, of computing threads and of all others, and the latency of one request."""


_CONFIGURATIONS = f"""Servers with several were started with each first, and keep for each model the one with the most
responses/s at {LOAD} in flight."""


def _shares(found: Iterable[Share]) -> str:
    heads = (
        "model",
        "server, mode",
        "computing CPU relative to `benchmark_app`",
        "serving CPU, us",
        "relative to the computing echo",
        "p50 of one request above `benchmark_app`'s, ms",
    )
    rows = [
        (
            s.model,
            _called(s.subject),
            spread(s.computing),
            spread(s.serving, 1e6),
            spread(s.of_echo),
            spread(s.later, 1000),
        )
        for s in found
    ]
    return _table(heads, rows)


def _called(subject: Subject) -> str:
    return f"{NAMES[subject.server]}, {subject.way}"


def _about(results: Results, model: str, run: Mapping[str, Any]) -> str:
    sizes, objective = run["sizes"][model], results.objective(model)
    text = f"{sizes['request']:,} bytes in a request, {sizes['answer']:,} in a response"
    if objective is None:
        return text + "."
    return f"{text}; the objective is p99 within {_figure(objective * 1000)} ms."


def _model(results: Results, model: str) -> str:
    own, reference = Subject(INFERD, UNARY), Subject(BENCHMARK_APP, "async")
    rows = []
    for subject in results.subjects(model):
        goodput, errors = results.goodput(model, subject), results.errors(model, subject)
        rows.append(
            (
                _called(subject),
                spread(Spread.of(results.alone(model, subject).values()), 1000),
                spread(Spread.of(results.best(model, subject).values())),
                spread(ratio(results.best(model, own), results.best(model, subject))),
                spread(Spread.of(goodput.values())) if goodput else NONE,
                spread(ratio(results.goodput(model, own), goodput)) if goodput else NONE,
                spread(Spread.of(results.cost(model, subject).values()), 1e6),
                spread(ratio(results.cost(model, subject), results.cost(model, reference))),
                spread(Spread.of(results.at(model, subject, LOAD, lambda r: r.client_cpu).values()), 1e6),
                str(errors[0] or ""),
            )
        )
    heads = (
        "server, mode",
        "p50 of one request, ms",
        "highest responses/s",
        "inferd relative to it",
        "responses/s within the objective",
        "inferd relative to it",
        "server CPU, us",
        "relative to `benchmark_app`",
        "client CPU, us",
        "errors",
    )
    return _table(heads, rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = tuple(heads)
    lines = [heads, ["---"] * len(heads), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
