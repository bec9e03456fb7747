"""One instance, its devices and its host: utilisation, saturation and errors of each resource."""

from collections.abc import Sequence

from grafana.source.dashboards import annotations as events
from grafana.source.dashboards import links, variables
from grafana.source.dashboards.annotations import Annotations
from grafana.source.dashboards.expressions import EXPECTED, INSTANCE, OURS, quantile, rate, ratio, total
from grafana.source.dashboards.layout import Board, Panel, arranged
from grafana.source.dashboards.panels import bars, counts, figure, graph, limit, line, right, stacked

_VERSION = "job, instance, model, version"
# Of the 24 columns.
_HALF = 12


def board() -> Board:
    return arranged(
        links.HOST,
        "inferd / host",
        "Instances of inferd, their devices and hosts: utilisation, saturation and errors of each resource.",
        [variables.job(), variables.instance()],
        [
            ("At a glance", _glance()),
            ("CPU", _cpu()),
            ("Responsiveness", _responsiveness()),
            ("Devices", _devices()),
            ("Memory and files", _memory()),
            ("Housekeeping", _housekeeping()),
            ("Workers", _workers()),
        ],
    )


def annotations() -> Annotations:
    return [events.builtin(), events.alerts(INSTANCE), events.loads(INSTANCE)]


def _glance() -> Sequence[Panel]:
    return [
        figure(
            "Up",
            "Whether Prometheus can scrape the instance; the worst of several.",
            "none",
            f"min(up{{{INSTANCE}}} {EXPECTED})",
            texts={"1": ("up", "green"), "0": ("down", "red")},
        ),
        figure(
            "Ready",
            "Whether the instance takes requests; the worst of several.",
            "none",
            f"min(inferd_ready{{{INSTANCE}}})",
            texts={"1": ("ready", "green"), "0": ("not ready", "red")},
        ),
        figure(
            "Uptime",
            "Time since the process started; the youngest of several.",
            "s",
            f"min(time() - (process_start_time_seconds{{{INSTANCE}}} {OURS}))",
            base="text",
        ),
        figure(
            "CPU",
            "CPUs in use on average.",
            "none",
            f"sum({rate('process_cpu_seconds_total', INSTANCE)} {OURS})",
            base="text",
            decimals=2,
        ),
        figure(
            "Memory",
            "Resident memory.",
            "bytes",
            f"sum(process_resident_memory_bytes{{{INSTANCE}}} {OURS})",
            base="text",
        ),
        figure(
            "Loop lag, p99",
            "Delay of a timer on the event loop: every request waits as long.",
            "s",
            quantile(0.99, "inferd_event_loop_lag_seconds", INSTANCE),
            steps=[(0.01, "yellow"), (0.1, "red")],
        ),
        figure(
            "Open calls",
            "Open inference RPCs; a stream counts as one.",
            "none",
            f"sum(inferd_open_calls{{{INSTANCE}}})",
            base="text",
        ),
        figure(
            "Devices lost",
            "Devices that models are configured for but OpenVINO does not find.",
            "none",
            f"count(inferd_device_up{{{INSTANCE}}} == 0) or vector(0)",
            steps=[(1, "red")],
        ),
    ]


def _cpu() -> Sequence[Panel]:
    time = graph(
        "CPU time",
        "CPUs in use on average, and the total of threads that CPU inference may use.",
        "none",
        line(f"{rate('process_cpu_seconds_total', INSTANCE)} {OURS}", "{{instance}}"),
        line(f"inferd_cpu_threads{{{INSTANCE}}}", "{{instance}} threads"),
    )
    throttled = graph(
        "Throttled by the CPU quota",
        "Ratio of the quota's periods in which the cgroup was throttled, and seconds a second for which its threads "
        "were throttled; no data without a quota.",
        "percentunit",
        line(
            ratio(
                rate("inferd_cpu_throttled_periods_total", INSTANCE),
                rate("inferd_cpu_quota_periods_total", INSTANCE),
            ),
            "{{instance}} periods",
        ),
        line(rate("inferd_cpu_throttled_seconds_total", INSTANCE), "{{instance}} seconds"),
        reach=0.1,
    )
    return [
        limit(time, ".* threads", "yellow"),
        right(throttled, ".* seconds", "s"),
        graph(
            "Pressure",
            "Fraction of time in which some tasks, or all (full), waited for a resource (PSI): those of the cgroup if "
            "the kernel reports it, otherwise those of the machine.",
            "percentunit",
            line(
                f"max by (instance, resource, kind) ({rate('inferd_pressure_stalled_seconds_total', INSTANCE)})",
                "{{instance}} {{resource}} {{kind}}",
            ),
        ),
    ]


def _responsiveness() -> Sequence[Panel]:
    def lag(title: str, description: str, histogram: str) -> Panel:
        return graph(
            title,
            description,
            "s",
            line(quantile(0.5, histogram, INSTANCE, "instance"), "{{instance}} p50"),
            line(quantile(0.99, histogram, INSTANCE, "instance"), "{{instance}} p99"),
            width=_HALF,
        )

    return [
        lag(
            "Event-loop lag",
            "Delay of a timer on the event loop: a request that arrived at that time waited as long.",
            "inferd_event_loop_lag_seconds",
        ),
        lag(
            "Thread lag",
            "Delay of a thread that only sleeps: the wait for a CPU and for the interpreter's lock.",
            "inferd_thread_lag_seconds",
        ),
        lag(
            "Accept wait",
            "Time that the server's calls to itself waited in gRPC before inferd saw them: every call waits as long, "
            "for any model.",
            "inferd_accept_wait_seconds",
        ),
        counts(
            "Open inference calls",
            "Open inference RPCs; a stream counts as one.",
            line(f"inferd_open_calls{{{INSTANCE}}}", "{{instance}}"),
        ).span(_HALF),
    ]


def _devices() -> Sequence[Panel]:
    by = "instance, device"
    slots = f"inferd_infer_requests{{{INSTANCE}}}"
    # Runs are counted by model version: with several devices, each device gets the mean of all.
    used = (
        f"{total(rate('inferd_busy_seconds_total', INSTANCE), _VERSION)} / {total(slots, _VERSION)}"
        f" * on ({_VERSION}) group_right () {slots}"
    )
    waiting = f"inferd_queue_length{{{INSTANCE}}} * on ({_VERSION}) group_right () ({slots} > bool 0)"
    ran = rate("inferd_requests_total", f'{INSTANCE}, device!=""')
    failed = rate("inferd_requests_total", f'{INSTANCE}, device!="", outcome="internal"')
    memory = graph(
        "Device memory",
        "Memory that this process has allocated on a device, by kind, and the device's size, if it reports them.",
        "bytes",
        line(f"inferd_device_memory_used_bytes{{{INSTANCE}}}", "{{instance}} {{device}} {{kind}}"),
        line(f"inferd_device_memory_bytes{{{INSTANCE}}}", "{{instance}} {{device}} size"),
    )
    return [
        graph(
            "Device utilisation",
            "Busy fraction of the infer requests on the device. A model on several devices counts with the mean of all "
            "of them.",
            "percentunit",
            line(f"{total(used, 'instance, device')} / {total(slots, 'instance, device')}", "{{instance}} {{device}}"),
            steps=[(1.0, "red")],
        ),
        counts(
            "Device saturation",
            "Requests waiting for the device; a model on several devices counts for each.",
            line(total(waiting, by), "{{instance}} {{device}}"),
        ),
        graph(
            "Device errors",
            "Requests a second that failed during or after a run on the device.",
            "reqps",
            line(f"{total(failed, by)} or 0 * {total(ran, by)}", "{{instance}} {{device}}"),
            reach=1,
        ),
        graph(
            "Requests by device",
            "Requests a second that ran on the device, with any outcome.",
            "reqps",
            line(total(ran, by), "{{instance}} {{device}}"),
        ),
        counts(
            "Device up",
            "1 while OpenVINO finds the device that models are configured for.",
            line(f"inferd_device_up{{{INSTANCE}}}", "{{instance}} {{device}}"),
        ),
        limit(memory, ".* size"),
    ]


def _memory() -> Sequence[Panel]:
    memory = graph(
        "Resident memory",
        "Memory of the process, and the limit of its cgroup, if any.",
        "bytes",
        line(f"process_resident_memory_bytes{{{INSTANCE}}} {OURS}", "{{instance}}"),
        line(f"inferd_memory_limit_bytes{{{INSTANCE}}}", "{{instance}} limit"),
    )
    files = graph(
        "Open files",
        "Open file descriptors, including sockets, and their ratio to the limit.",
        "none",
        line(f"process_open_fds{{{INSTANCE}}} {OURS}", "{{instance}}"),
        line(
            f"process_open_fds{{{INSTANCE}}} / process_max_fds{{{INSTANCE}}} {OURS}",
            "{{instance}} of the limit",
        ),
    )
    return [
        limit(memory, ".* limit"),
        right(files, ".* of the limit", "percentunit"),
        graph(
            "Garbage collections",
            "Collections of Python's garbage collector a second, by generation; those of generation 2 cause the "
            "longest pauses.",
            "ops",
            line(
                f"{rate('python_gc_collections_total', INSTANCE)} {OURS}",
                "{{instance}} generation {{generation}}",
            ),
        ),
    ]


def _housekeeping() -> Sequence[Panel]:
    return [
        bars(
            graph(
                "Cache lookups",
                "Lookups in the cache of compiled models: hit, miss, or refused (found, but not importable).",
                "none",
                line(
                    total(f"increase(inferd_cache_lookups_total{{{INSTANCE}}}[$__rate_interval])", "result"),
                    "{{result}}",
                ),
                reach=2,
            )
        ),
        graph(
            "Scrape",
            "Time to collect the metrics, at the previous scrape.",
            "s",
            line(f"inferd_scrape_duration_seconds{{{INSTANCE}}}", "{{instance}}"),
        ),
        stacked(
            counts(
                "Requests in flight",
                "Requests waiting or running, over all models.",
                line(total(f"inferd_in_flight_requests{{{INSTANCE}}}", "instance"), "{{instance}}"),
            )
        ),
    ]


def _workers() -> Sequence[Panel]:
    processes = counts(
        "Workers",
        "Serving and configured worker processes; no data if inferd is one process.",
        line(f"inferd_workers_ready{{{INSTANCE}}}", "{{instance}}"),
        line(f"inferd_workers{{{INSTANCE}}}", "{{instance}} configured"),
    )
    replaced = graph(
        "Workers replaced",
        "Worker processes that replaced a dead one, whose requests failed as unavailable.",
        "none",
        line(f"increase(inferd_workers_replaced_total{{{INSTANCE}}}[$__rate_interval])", "{{instance}}"),
        reach=2,
    )
    return [limit(processes, ".* configured").span(_HALF), bars(replaced).span(_HALF)]
