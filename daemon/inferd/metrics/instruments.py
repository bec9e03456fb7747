"""Every series inferd exports, declared once; docs/metrics.md is generated from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inferd.merging import rule_at
from inferd.metrics.merge_text import Rule
from inferd.metrics.snapshot import DeviceSnapshot, ServerSnapshot, VersionSnapshot

# 1 / 1.6 / 2.5 / 4 / 6.3 a decade from 100 us to 10 s: the worst error of a p99 read from it is 34 %.
_STEPS = (1.0, 1.6, 2.5, 4.0, 6.3)
LATENCY_BUCKETS = (*(round(s * 10.0**e, 7) for e in range(-4, 1) for s in _STEPS), 10.0)

# A model has eight stages and a scrape must stay cheap, so stages get two steps a decade and start where
# a stage begins to matter.
STAGE_BUCKETS = (0.0001, 0.0004, 0.001, 0.004, 0.01, 0.04, 0.1, 0.4, 1.0, 4.0)

# Any busy machine wakes a thread late by less than a millisecond.
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

# Less than a millisecond on an idle server; seconds where calls queue in front of a flooded one.
ACCEPT_WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

ROWS_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

# In the order they happen; together they make up the request's duration.
STAGES = ("decode", "queue", "batch", "input", "compute", "handover", "output", "encode")

# The label for an unknown model: a client's spelling must never become a series.
OTHER = "_OTHER"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric family: name without the type's suffix, HELP text, label names.

    ``merged`` says how the values of several workers become one; histograms are always summed and infos deduplicated.
    ``field`` is its place in the snapshot, None if a collector makes its series.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()
    merged: Rule = "sum"
    field: "SnapshotField | None" = None


@dataclass(frozen=True, slots=True)
class SnapshotField:
    """Where an instrument's value is in the snapshot: at ``path``, such as ``queue.oldest``, in records of a kind."""

    of: type
    path: str

    def read(self, record: object) -> Any:
        """The value in ``record``, None where a step of the path is None."""
        value: Any = record
        for name in self.path.split("."):
            if (value := getattr(value, name)) is None:
                return None
        return value

    @property
    def merged(self) -> Rule:
        """The rule that the snapshot declares."""
        return _SERIES_RULES[rule_at(self.of, self.path)]


# Each key of a mapping is a series of its own.
_SERIES_RULES: Mapping[str, Rule] = {"sum": "sum", "max": "max", "counts": "sum", "max counts": "max"}
_VERSION = ("model", "version")
_DEVICE = ("model", "version", "device")


def _of_server(name: str, kind: Literal["counter", "gauge"], help: str, path: str, *labels: str) -> Instrument:  # noqa: A002
    """A number of the server, or a mapping from values of ``labels`` to numbers."""
    field = SnapshotField(ServerSnapshot, path)
    return Instrument(name, kind, help, labels, field.merged, field)


def _of_version(name: str, help: str, path: str) -> Instrument:  # noqa: A002
    """A gauge of each model version that serves."""
    field = SnapshotField(VersionSnapshot, path)
    return Instrument(name, "gauge", help, _VERSION, field.merged, field)


def _of_device(name: str, help: str, path: str) -> Instrument:  # noqa: A002
    """A gauge of each device that a model version runs on."""
    field = SnapshotField(DeviceSnapshot, path)
    return Instrument(name, "gauge", help, _DEVICE, field.merged, field)


# -- requests ---------------------------------------------------------------------

REQUESTS = Instrument(
    "inferd_requests",
    "counter",
    "Inference requests received, each counted once, when it ended. outcome: ok, invalid, not_found, unavailable, "
    "overloaded, deadline, cancelled, aborted, internal, unauthenticated, denied (bad credentials; a stream counts "
    "once) or aborted_receive (too large, cancelled or past its deadline before its whole message had arrived); "
    f"reason tells the causes of an outcome apart; device is empty for a request that never ran; model is {OTHER} for "
    "an unknown model.",
    ("model", "version", "device", "outcome", "reason"),
)
REQUEST_SECONDS = Instrument(
    "inferd_request_duration_seconds",
    "histogram",
    "Seconds from receiving a request to its response, for successful requests. The model's latency objective is one "
    "of the bucket boundaries.",
    _VERSION,
)
OBJECTIVE_MET = Instrument(
    "inferd_objective_met",
    "counter",
    "Successful responses within the latency objective in force, for models that have one.",
    _VERSION,
)
OBJECTIVE_MISSED = Instrument(
    "inferd_objective_missed",
    "counter",
    "Successful responses slower than the latency objective in force, for models that have one.",
    _VERSION,
)
STAGE_SECONDS = Instrument(
    "inferd_stage_duration_seconds",
    "histogram",
    "Seconds that successful requests spent in each stage. decode: parsing and checking; queue: waiting in gRPC, "
    "where calls do, and for an infer request; batch: waiting to fill a batch while an infer request was free; input: "
    "copying in; compute: in OpenVINO; handover: from OpenVINO's thread to the event loop; output: copying out; "
    "encode: serialising the response.",
    ("model", "version", "stage"),
)
INFERENCES = Instrument("inferd_inferences", "counter", "Rows of the batch dimension in successful requests.", _VERSION)
BATCH_ROWS = Instrument("inferd_batch_rows", "histogram", "Rows in each successful batch.", _VERSION)
RECEIVED_BYTES = Instrument(
    "inferd_received_bytes",
    "counter",
    "Bytes of request messages, and of BOOL and BYTES inputs copied out of shared memory.",
    _VERSION,
)
SENT_BYTES = Instrument("inferd_sent_bytes", "counter", "Bytes of successful responses.", _VERSION)
OPEN_CALLS = _of_server("inferd_open_calls", "gauge", "Open inference RPCs; a stream counts once.", "open_calls")
IGNORED_PARAMETERS = _of_server(
    "inferd_ignored_parameters",
    "counter",
    "Parameters of requests, and of their inputs and outputs, that inferd does not know and ignored.",
    "ignored_parameters",
)

# -- load of a model version ------------------------------------------------------

QUEUE_LENGTH = _of_version("inferd_queue_length", "Requests waiting to start.", "queue.waiting")
QUEUE_BYTES = _of_version("inferd_queue_bytes", "Bytes of the requests waiting to start.", "queue.waiting_bytes")
QUEUE_OLDEST = _of_version(
    "inferd_queue_oldest_seconds",
    "Age in seconds of the oldest request waiting to start, 0 for none.",
    "queue.oldest",
)
IN_FLIGHT = _of_version("inferd_in_flight_requests", "Requests queued or running.", "queue.in_flight")
IN_FLIGHT_LIMIT = _of_version(
    "inferd_in_flight_limit",
    "Requests that may be in flight now: learnt from service times under an objective, otherwise the capacity of "
    "queue and infer requests.",
    "queue.limit",
)
INFER_REQUESTS_BUSY = _of_version(
    "inferd_infer_requests_busy", "Infer requests in use, including those of cancelled runs.", "queue.running"
)
BUSY_SECONDS = _of_server(
    "inferd_busy_seconds",
    "counter",
    "Seconds that infer requests were in use, summed; its rate divided by inferd_infer_requests is utilisation.",
    "busy",
    *_VERSION,
)
SEQUENCES = _of_version("inferd_sequences", "Live sequences.", "queue.sequences")
SEQUENCES_LIMIT = _of_version(
    "inferd_sequences_limit", "Live sequences allowed at a time, for models that have sequences.", "sequences_limit"
)

# -- models -----------------------------------------------------------------------

READY = _of_server("inferd_ready", "gauge", "1 while the server accepts requests, otherwise 0.", "ready")
MODEL_READY = Instrument(
    "inferd_model_ready",
    "gauge",
    "1 while the model version is ready, otherwise 0; absent for versions unloaded on purpose. version is empty for a "
    "model that could not be read.",
    _VERSION,
    merged="min",
)
MODEL_STATE = Instrument(
    "inferd_model_state",
    "gauge",
    "1 for the current state of the model version, 0 for the others: LOADING, READY, UNLOADING, UNAVAILABLE.",
    ("model", "version", "state"),
    merged="max",
)
MODEL_INFO = Instrument(
    "inferd_model",
    "info",
    "How the model version runs on the device: the devices that execute it, its precision, and whether it came from "
    "the cache of compiled models.",
    ("model", "version", "device", "execution_devices", "precision", "from_cache"),
)
MODEL_LOADS = _of_server(
    "inferd_model_loads",
    "counter",
    "Attempts to load a model version, by result: ok or failed. After a failure the version served before stays.",
    "loads",
    "model",
    "result",
)
MODEL_ROLLBACKS = _of_server(
    "inferd_model_rollbacks",
    "counter",
    "Canary versions (rollout.canary_share) that were rolled back, by reason: failed (more of their requests failed), "
    "worse (more were late or refused) or stopped (another change came before the decision).",
    "rollbacks",
    "model",
    "version",
    "reason",
)
RELOADS = _of_server(
    "inferd_reloads",
    "counter",
    "Reloads of settings and repository, after SIGHUP or a change in the repository, by result: ok, or failed when "
    "settings or repository can't be read or a model on disk can't be served; what was served before stays.",
    "reloads",
    "result",
)
MODEL_UNHEALTHY = Instrument(
    "inferd_model_unhealthy",
    "gauge",
    "1 while a loaded model version is not ready, by reason, otherwise absent: device_lost; hanging (hung runs hold "
    "every infer request, or can't be cleared); failing (probes fail); silent (probes get no response).",
    ("model", "version", "reason"),
    merged="max",
)
HUNG_RUNS = _of_server(
    "inferd_hung_runs",
    "counter",
    "Runs given up as hung; requests still waiting for one fail as internal or at their deadline.",
    "hung",
    *_DEVICE,
)
REPLACED_REQUESTS = _of_server(
    "inferd_replaced_infer_requests",
    "counter",
    "Hung infer requests that were replaced.",
    "replaced",
    *_DEVICE,
)
LOAD_SECONDS = _of_version(
    "inferd_model_load_seconds", "Seconds from reading the version's file until the version was ready.", "load_seconds"
)
COMPILE_SECONDS = _of_device(
    "inferd_model_compile_seconds",
    "Seconds spent compiling, or importing from the cache of compiled models.",
    "compile_seconds",
)
WARM_UP_SECONDS = _of_device("inferd_model_warm_up_seconds", "Seconds spent on warm-up.", "warm_up_seconds")
FIRST_INFERENCE_SECONDS = _of_device(
    "inferd_model_first_inference_seconds",
    "Seconds that the first run took; 0 when warm-up is off.",
    "first_run_seconds",
)
CACHE_LOOKUPS = _of_server(
    "inferd_cache_lookups",
    "counter",
    "Look-ups in the cache of compiled models, by result: hit, miss or refused (found, but not importable).",
    "cache_lookups",
    "result",
)
OBJECTIVE_SECONDS = _of_version(
    "inferd_objective_latency_seconds", "Latency objective in seconds, for models that have one.", "objective.latency"
)
OBJECTIVE_RATIO = _of_version(
    "inferd_objective_latency_ratio",
    "Share of successful responses that must meet the latency objective, such as 0.99.",
    "objective.latency_ratio",
)
AVAILABILITY_RATIO = _of_version(
    "inferd_objective_availability_ratio",
    "Share of requests that must succeed, such as 0.999; client errors do not count.",
    "objective.availability_ratio",
)

# -- execution and tuning ---------------------------------------------------------

STREAMS = _of_device("inferd_streams", "Streams of the compiled model, as OpenVINO reports them.", "streams")
STREAMS_REQUESTED = _of_device(
    "inferd_streams_requested", "Streams requested; 0 leaves the number to OpenVINO.", "streams_requested"
)
THREADS = _of_device("inferd_threads", "CPU threads of all streams, as OpenVINO reports them; 0 if unknown.", "threads")
THREADS_REQUESTED = _of_device(
    "inferd_threads_requested", "CPU threads requested; 0 leaves the number to OpenVINO.", "threads_requested"
)
INFER_REQUESTS = _of_device("inferd_infer_requests", "Runs allowed at a time.", "infer_requests")
MAX_BATCH_ROWS = _of_device("inferd_max_batch_rows", "Rows allowed in one batch.", "max_batch_rows")
INLINE = _of_device(
    "inferd_inline",
    "1 while runs are computed on the event loop's thread, 0 while they are handed over; with several workers, the "
    "number of workers that compute so.",
    "inline",
)
TUNING_DECISIONS = Instrument(
    "inferd_tuning_decisions",
    "counter",
    "Finished tunings, by decision: promoted, kept (the current settings), stored (for the next load), wrong_output, "
    "failed or worse (all three rolled back), or stopped.",
    ("model", "version", "decision"),
)
TUNING_ACTIVE = _of_version("inferd_tuning_active", "1 while the model version is being tuned.", "tuning.active")
TUNING_SECONDS = Instrument("inferd_tuning_seconds", "counter", "Seconds spent on searches.", _VERSION)
TUNING_GAIN = _of_version(
    "inferd_tuning_gain_ratio",
    "Throughput of the chosen settings relative to OpenVINO's THROUGHPUT hint, as last measured; 0 if unknown.",
    "tuning.gain",
)

# -- security ---------------------------------------------------------------------

CERTIFICATE_EXPIRY = Instrument(
    "inferd_tls_certificate_expiry_timestamp_seconds",
    "gauge",
    "When the certificate presented to new connections expires, in seconds since 1970; absent without TLS.",
    merged="min",
)
CREDENTIALS_CURRENT = Instrument(
    "inferd_credentials_current",
    "gauge",
    "1 while the credentials in use match their files, 0 after the files changed to something unusable and the "
    "previous credentials stay. kind: certificate (with its key and the clients' CAs) or tokens.",
    ("kind",),
    merged="min",
)
CREDENTIALS_RELOADS = Instrument(
    "inferd_credentials_reloads",
    "counter",
    "Re-reads of changed credential files, by result: ok or failed.",
    ("kind", "result"),
    merged="max",
)
REFUSED_CALLS = Instrument(
    "inferd_refused_calls",
    "counter",
    "Calls of any kind refused for their credentials. endpoint: grpc or metrics; reason: missing, malformed, unknown "
    "or expired (the token), or scope (the client is known but lacks the scope).",
    ("endpoint", "reason"),
)

# -- process, host, devices -------------------------------------------------------

LOG_LINES_LOST = Instrument(
    "inferd_log_lines_lost",
    "counter",
    "Lines of the log that were never written, because the log is not read or because there is no room for it.",
)

LOOP_LAG = Instrument(
    "inferd_event_loop_lag_seconds",
    "histogram",
    "Seconds by which the event loop ran a timer late, sampled ten times a second: a request would have waited as "
    "long.",
)
THREAD_LAG = Instrument(
    "inferd_thread_lag_seconds",
    "histogram",
    "Seconds by which a sleeping thread woke late, sampled ten times a second: its wait for a CPU and for the GIL.",
)
ACCEPT_WAIT = Instrument(
    "inferd_accept_wait_seconds",
    "histogram",
    "Seconds that the server's calls to itself waited in gRPC: ten calls a second while they wait, otherwise four "
    "with calls open, or one. The wait beyond that of an idle server is part of every request's queue time.",
)
CPU_THREADS = Instrument("inferd_cpu_threads", "gauge", "Threads that CPU inference may use in total.")
CPU_PERIODS = Instrument(
    "inferd_cpu_quota_periods",
    "counter",
    "Enforcement periods of the control group's CPU quota in which it had work to do.",
    merged="max",
)
CPU_THROTTLED_PERIODS = Instrument(
    "inferd_cpu_throttled_periods",
    "counter",
    "Enforcement periods in which the control group was throttled.",
    merged="max",
)
CPU_THROTTLED_SECONDS = Instrument(
    "inferd_cpu_throttled_seconds",
    "counter",
    "Seconds that threads of the control group were throttled.",
    merged="max",
)
PRESSURE = Instrument(
    "inferd_pressure_stalled_seconds",
    "counter",
    "Seconds in which some or all (kind full) tasks waited for the resource (cpu, memory or io): the kernel's "
    "pressure stall information of the control group if it has its own, otherwise of the machine.",
    ("resource", "kind"),
    merged="max",
)
MEMORY_LIMIT = Instrument(
    "inferd_memory_limit_bytes", "gauge", "Memory limit of the control group in bytes, if it has one.", merged="max"
)
CONNECTIONS = Instrument(
    "inferd_connections", "gauge", "Connections to the gRPC port, of all processes that share it.", merged="max"
)
CONNECTIONS_LIMIT = Instrument(
    "inferd_connections_limit",
    "gauge",
    "Connections that the gRPC port takes: max_connections, or what the limit on open files leaves for them.",
)
DEVICE_UP = Instrument(
    "inferd_device_up",
    "gauge",
    "1 while OpenVINO finds the device that models are to run on, otherwise 0.",
    ("device",),
    merged="min",
)
DEVICE_MEMORY_USED = Instrument(
    "inferd_device_memory_used_bytes",
    "gauge",
    "Device memory allocated by this process in bytes, by kind, if the device reports it.",
    ("device", "kind"),
)
DEVICE_MEMORY = Instrument(
    "inferd_device_memory_bytes",
    "gauge",
    "Memory of the device in bytes, if the device reports it.",
    ("device",),
    merged="max",
)
SCRAPE_SECONDS = Instrument(
    "inferd_scrape_duration_seconds",
    "gauge",
    "Seconds that collecting the previous scrape took.",
    merged="own",
)
WORKERS = Instrument("inferd_workers", "gauge", "Worker processes configured; absent with a single process.")
WORKERS_READY = Instrument("inferd_workers_ready", "gauge", "Worker processes that serve and do not hang.")
WORKERS_REPLACED = Instrument(
    "inferd_workers_replaced", "counter", "Worker processes started to replace one that died."
)
BUILD = Instrument(
    "inferd_build", "info", "Versions of inferd, OpenVINO and Python.", ("version", "openvino", "python")
)

ALL = tuple(thing for thing in globals().values() if isinstance(thing, Instrument))


def reference_page() -> str:
    """docs/metrics.md."""
    rows = (
        f"| `{i.name}{_suffix(i)}` | {i.kind} | {', '.join(i.labels)} | {_MERGED.get(i.kind, i.merged)} | {i.help} |"
        for i in ALL
    )
    return (
        "# Metrics\n\n<!-- Generated by .ci/generate from the code; do not edit. -->\n\n"
        "Workers: how the series of several worker processes become one ([workers.md](workers.md)); own is the "
        "supervisor's own.\n\n"
        "| series | type | labels | workers | meaning |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


_MERGED = {"histogram": "sum", "info": "once"}


def _suffix(instrument: Instrument) -> str:
    return {"counter": "_total", "info": "_info"}.get(instrument.kind, "")
