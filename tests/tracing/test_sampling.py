"""Which requests are traced, and what tracing needs."""

import subprocess
import sys
import time

import pytest

from inferd.errors import ConfigurationError, InferdError
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext
from inferd.tracing.sampling import Tracer
from tests.span_collector import Collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


def code_of(_: InferdError) -> str:
    return "INTERNAL"


def ended(trace: TraceContext | None) -> Observation:
    now = time.monotonic_ns()
    return Observation("m", "1", "ok", Stages(received=now, answered=now + 1), trace=trace)


@pytest.fixture
def collector() -> Collector:
    """The address of a collector that tests start if they need it."""
    return Collector()


# -- beginning --------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(("sent", "sampled"), [(SAMPLED, True), (UNSAMPLED, False)])
def test_a_clients_own_context_decides(collector: Collector, ratio: float, sent: str, sampled: bool) -> None:
    tracer = Tracer(collector.endpoint, ratio, code_of)
    context = tracer.begin(sent, "congo=t61rcWkgMzE")
    assert context is not None
    assert (context.trace_id, context.parent_id, context.sampled) == (TRACE, PARENT, sampled)
    assert context.state == "congo=t61rcWkgMzE"
    tracer.close()


@pytest.mark.parametrize("sent", ["", SAMPLED[:-1], f"00-{'0' * 32}-{PARENT}-01"])
def test_without_a_valid_context_the_ratio_decides(collector: Collector, sent: str) -> None:
    always, never = Tracer(collector.endpoint, 1.0, code_of), Tracer(collector.endpoint, 0.0, code_of)
    context = always.begin(sent, "congo=t61rcWkgMzE")
    assert context is not None
    assert (context.parent_id, context.sampled, context.state) == ("", True, "")
    assert never.begin(sent, "congo=t61rcWkgMzE") is None
    always.close()
    never.close()


def test_the_ratio_is_the_share_that_is_traced(collector: Collector) -> None:
    tracer = Tracer(collector.endpoint, 0.25, code_of)
    traced = [context for context in (tracer.begin("", "") for _ in range(10_000)) if context]
    assert 2200 < len(traced) < 2800  # seven standard deviations
    tracer.close()


def test_no_two_spans_have_an_id_in_common(collector: Collector) -> None:
    first, second = Tracer(collector.endpoint, 1.0, code_of), Tracer(collector.endpoint, 1.0, code_of)
    contexts = [tracer.begin(sent, "") for tracer in (first, second) for sent in ("", SAMPLED) for _ in range(1000)]
    assert len({context.span_id for context in contexts if context}) == 4000
    assert len({context.trace_id for context in contexts if context}) == 2001
    first.close()
    second.close()


def test_without_a_collector_only_clients_begin_traces() -> None:
    tracer = Tracer("", 1.0, code_of)
    assert tracer.begin("", "") is None
    context = tracer.begin(SAMPLED, "")
    assert context is not None
    assert (context.trace_id, context.sampled) == (TRACE, True)
    tracer.observe(ended(context))
    tracer.close()


# -- ending -----------------------------------------------------------------------


def test_only_sampled_requests_become_spans(collector: Collector) -> None:
    with collector:
        tracer = Tracer(collector.endpoint, 0.0, code_of)
        sampled, unsampled = tracer.begin(SAMPLED, ""), tracer.begin(UNSAMPLED, "")
        for context in (None, unsampled, sampled, unsampled, None):
            tracer.observe(ended(context))
        tracer.close()
        assert sampled is not None
        assert [span.span_id for span in collector.spans if span.kind == "SERVER"] == [sampled.span_id]


# -- what it needs ----------------------------------------------------------------


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "inferd.tracing.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    Tracer("", 1.0, code_of)
    with pytest.raises(ConfigurationError) as caught:
        Tracer("http://127.0.0.1:4317", 1.0, code_of)
    assert str(caught.value) == (
        'settings: trace_endpoint: needs opentelemetry.sdk.trace, which is not installed: pip install "inferd[tracing]"'
    )


def test_opentelemetry_is_not_loaded_while_tracing_is_off() -> None:
    script = (
        "import sys\n"
        "from inferd.tracing.sampling import Tracer\n"
        "Tracer('', 1.0, str).close()\n"
        "print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout == "\n"
