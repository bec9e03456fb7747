"""Which tests are slow, and which need the machine to themselves: the one place that says so, and why.

A row is a file, or a file and one of its tests; it stands for all their cases. `make test` leaves the slow ones out,
`make test-all` runs every test. Serial ones run after the others, one at a time.
"""

Rows = dict[str, list[str]]
"""Tests by the reason that is theirs."""

SLOW: Rows = {
    "a benchmark": [
        "tests/benchmarks/test_computing_echo.py::test_inferd_answers_over_a_stream_and_in_shared_memory_at_once",
        "tests/benchmarks/test_computing_echo.py::test_the_echoes_are_asked_in_their_ways_and_their_threads_told_apart",
    ],
    "hundreds of searches": [
        "tests/tuning/test_search.py::test_a_search_costs_a_small_part_of_a_sweep",
        "tests/tuning/test_search.py::test_winners_are_within_5_per_cent_of_the_best",
    ],
    "a load generator that repeats its windows": ["tests/system/test_perf_analyzer.py"],
    "a fuzzer": ["tests/fuzz/test_codec.py::test_twenty_thousand_mutations_are_requests_or_refusals"],
    "counts the steps of long random walks": [
        "tests/scheduling/test_random_walks.py::test_the_walks_were_long_enough",
    ],
    "minutes of mixed load": ["tests/system/test_soak.py"],
    "promtool plays days of samples": [
        "tests/grafana/test_rules.py::test_rules_do_what_the_scenarios_say",
        "tests/grafana/test_rules.py::test_the_windows_can_be_shortened",
    ],
    "Prometheus scrapes for as long as its windows": [
        "tests/system/test_alerting.py",
        "tests/system/test_dashboards.py",
        "tests/system/test_histogram_truth.py",
    ],
    "a browser": ["tests/system/test_status_page.py"],
    "boots a Debian": ["tests/system/test_systemd.py"],
    "installs two environments": ["tests/system/test_one_environment.py"],
}

SERIAL: Rows = {
    "sends requests when they are due, and times them": [
        "tests/load_generator/test_generator.py",
        "tests/benchmarks/test_open_loop.py",
        "tests/tuner/test_load.py",
    ],
    "an objective or a deadline decides by how long runs take": [
        "tests/system/test_accept_wait.py",
        "tests/system/test_malformed.py",
        "tests/system/test_overload.py",
    ],
    "times the event loop": [
        "tests/exposition/test_lag.py",
        "tests/rpc/test_accept_wait_probe.py",
        "tests/supervision/test_inline_runs.py",
    ],
    "Prometheus scrapes twice a second, and alerts go by it": [
        "tests/system/test_alerting.py",
        "tests/system/test_histogram_truth.py",
    ],
    "a load generator that measures": ["tests/system/test_perf_analyzer.py", "tests/system/test_soak.py"],
    "systemd's watchdog waits two seconds": ["tests/system/test_watchdog.py"],
}
