"""Every series inferd exports, declared once; docs/metrics.md is generated from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inferd.merging import rule_at
from inferd.metrics.merge_text import Rule
from inferd.metrics.snapshot import DeviceSnapshot, ServerSnapshot, VersionSnapshot

# 1 / 1.6 / 2.5 / 4 / 6.3 a decade from 100 us to 10 s: worst error of a p99 read off it 34 %.
_STEPS = (1.0, 1.6, 2.5, 4.0, 6.3)
LATENCY_BUCKETS = (*(round(s * 10.0**e, 7) for e in range(-4, 1) for s in _STEPS), 10.0)

# Eight stages a model share what one scrape may cost, so they get two steps a decade, and start where
# a stage begins to matter.
STAGE_BUCKETS = (0.0001, 0.0004, 0.001, 0.004, 0.01, 0.04, 0.1, 0.4, 1.0, 4.0)

# Waking late by less than a millisecond is what any busy machine does.
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

# On an idle server less than a millisecond; what queues in front of a flooded one may take seconds.
ACCEPT_WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

ROWS_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

# In the order they happen; together they are the request's duration.
STAGES = ("decode", "queue", "batch", "input", "compute", "handover", "output", "encode")

# The label of what names no model of ours: a client's spelling must never become a series.
OTHER = "_OTHER"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric family: name without the type's suffix, help text, label names.

    ``merged`` says how the values of several workers become one; histograms are summed and facts deduplicated anyway.
    ``field`` is what it shows of the snapshot, None where a collector makes its series.
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
        """As the snapshot declares it."""
        return _SERIES_RULES[rule_at(self.of, self.path)]


# Each key of a mapping is a series of its own.
_SERIES_RULES: Mapping[str, Rule] = {"sum": "sum", "max": "max", "counts": "sum", "max counts": "max"}
_VERSION = ("model", "version")
_DEVICE = ("model", "version", "device")


def _of_server(name: str, kind: Literal["counter", "gauge"], help: str, path: str, *labels: str) -> Instrument:  # noqa: A002
    """A number of the server, or a mapping of them by the values of ``labels``."""
    field = SnapshotField(ServerSnapshot, path)
    return Instrument(name, kind, help, labels, field.merged, field)


def _of_version(name: str, help: str, path: str) -> Instrument:  # noqa: A002
    """A gauge of each model version that answers."""
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
    "Inference requests that reached the server, each counted once, when it ended. outcome: ok, invalid, not_found, "
    "unavailable, overloaded, deadline, cancelled, aborted, internal, unauthenticated and denied (refused for their "
    "credentials; a stream counts as one) or aborted_receive (too large, cancelled or out of time before its message "
    "was here whole, so that nothing more is known of it); reason says why where an outcome has "
    f"several causes; device is empty where it never ran; model is {OTHER} where it named none of ours.",
    ("model", "version", "device", "outcome", "reason"),
)
REQUEST_SECONDS = Instrument(
    "inferd_request_duration_seconds",
    "histogram",
    "Time from receiving a request to its answer, of those answered well. The model's objective is one of the "
    "boundaries.",
    _VERSION,
)
OBJECTIVE_MET = Instrument(
    "inferd_objective_met",
    "counter",
    "Requests answered well within the latency objective that held, of models that have one.",
    _VERSION,
)
OBJECTIVE_MISSED = Instrument(
    "inferd_objective_missed",
    "counter",
    "Requests answered well and later than the latency objective that held, of models that have one.",
    _VERSION,
)
STAGE_SECONDS = Instrument(
    "inferd_stage_duration_seconds",
    "histogram",
    "Where the time of requests answered well went. decode: parsing and checking; queue: waiting in gRPC, "
    "where calls do, and for an infer request; batch: waiting to fill a batch while one was free; input: copying in; "
    "compute: in OpenVINO; handover: from OpenVINO's thread to the event loop; output: copying out; encode: making the "
    "answer's bytes.",
    ("model", "version", "stage"),
)
INFERENCES = Instrument("inferd_inferences", "counter", "Rows of the batch dimension answered well.", _VERSION)
BATCH_ROWS = Instrument("inferd_batch_rows", "histogram", "Rows in each batch, of batches that succeeded.", _VERSION)
RECEIVED_BYTES = Instrument(
    "inferd_received_bytes",
    "counter",
    "Bytes of request messages, and of BOOL and BYTES inputs that were taken out of shared memory.",
    _VERSION,
)
SENT_BYTES = Instrument("inferd_sent_bytes", "counter", "Bytes of answers, of requests answered well.", _VERSION)
OPEN_CALLS = _of_server("inferd_open_calls", "gauge", "Inference RPCs that are open; a stream is one.", "open_calls")

# -- what a model version has to do -----------------------------------------------

QUEUE_LENGTH = _of_version("inferd_queue_length", "Requests that have not started.", "queue.waiting")
QUEUE_BYTES = _of_version("inferd_queue_bytes", "Bytes of the requests that have not started.", "queue.waiting_bytes")
QUEUE_OLDEST = _of_version(
    "inferd_queue_oldest_seconds", "Age of the oldest request that has not started, 0 for none.", "queue.oldest"
)
IN_FLIGHT = _of_version("inferd_in_flight_requests", "Requests waiting or running.", "queue.in_flight")
IN_FLIGHT_LIMIT = _of_version(
    "inferd_in_flight_limit",
    "Requests that may be waiting or running at present: learnt from service times under an objective, "
    "else what queue and infer requests hold.",
    "queue.limit",
)
INFER_REQUESTS_BUSY = _of_version(
    "inferd_infer_requests_busy", "Infer requests in use, those of cancelled runs included.", "queue.running"
)
BUSY_SECONDS = _of_server(
    "inferd_busy_seconds",
    "counter",
    "Seconds that infer requests were in use, all of them together; its rate by inferd_infer_requests is utilisation.",
    "busy",
    *_VERSION,
)
SEQUENCES = _of_version("inferd_sequences", "Sequences that hold a state.", "queue.sequences")
SEQUENCES_LIMIT = _of_version(
    "inferd_sequences_limit", "Sequences that may hold a state at a time, of models that have any.", "sequences_limit"
)

# -- models -----------------------------------------------------------------------

READY = _of_server("inferd_ready", "gauge", "1 while the server takes requests, else 0.", "ready")
MODEL_READY = Instrument(
    "inferd_model_ready",
    "gauge",
    "1 while the model version answers, else 0; what was unloaded on purpose is not listed. version is empty for a "
    "model that could not be read at all.",
    _VERSION,
    merged="min",
)
MODEL_STATE = Instrument(
    "inferd_model_state",
    "gauge",
    "1 for the state that the model version is in, 0 for the others: LOADING, READY, UNLOADING, UNAVAILABLE.",
    ("model", "version", "state"),
    merged="max",
)
MODEL_INFO = Instrument(
    "inferd_model",
    "info",
    "How the model version runs on the device: the devices that really execute it, its precision, and whether it "
    "came from the cache of compiled models.",
    ("model", "version", "device", "execution_devices", "precision", "from_cache"),
)
MODEL_LOADS = _of_server(
    "inferd_model_loads",
    "counter",
    "Attempts to load a version of the model, by result: ok or failed. What was served before a failed one goes on.",
    "loads",
    "model",
    "result",
)
MODEL_ROLLBACKS = _of_server(
    "inferd_model_rollbacks",
    "counter",
    "Versions that were tried on a part of the requests (rollout.canary_share) and taken back, by reason: failed (more "
    "of its requests failed), worse (more were late or refused), or stopped (another change came before it was "
    "decided).",
    "rollbacks",
    "model",
    "version",
    "reason",
)
RELOADS = _of_server(
    "inferd_reloads",
    "counter",
    "Reloads of settings and repository, on SIGHUP or because the repository changed, by result: ok, or failed where "
    "one of them can't be read or a model can't be served as it is on disk; what was served goes on.",
    "reloads",
    "result",
)
MODEL_UNHEALTHY = Instrument(
    "inferd_model_unhealthy",
    "gauge",
    "1 for what keeps a model version that is loaded from being ready, absent while nothing does. reason: device_lost; "
    "hanging (runs that hang hold every infer request, or can't be got rid of); failing and silent (inferences on "
    "made-up input fail, or have no answer).",
    ("model", "version", "reason"),
    merged="max",
)
HUNG_RUNS = _of_server(
    "inferd_hung_runs",
    "counter",
    "Runs that were given up because they hang; whoever still waited was answered internal, or at the deadline.",
    "hung",
    *_DEVICE,
)
REPLACED_REQUESTS = _of_server(
    "inferd_replaced_infer_requests",
    "counter",
    "Infer requests that others have taken the place of, because a run on them does not end.",
    "replaced",
    *_DEVICE,
)
LOAD_SECONDS = _of_version(
    "inferd_model_load_seconds", "Seconds from reading the version's file to its being ready.", "load_seconds"
)
COMPILE_SECONDS = _of_device(
    "inferd_model_compile_seconds", "Seconds spent compiling, or importing from the cache.", "compile_seconds"
)
WARM_UP_SECONDS = _of_device("inferd_model_warm_up_seconds", "Seconds spent on warm-up.", "warm_up_seconds")
FIRST_INFERENCE_SECONDS = _of_device(
    "inferd_model_first_inference_seconds", "Seconds that the first run took; 0 if warm-up is off.", "first_run_seconds"
)
CACHE_LOOKUPS = _of_server(
    "inferd_cache_lookups",
    "counter",
    "Looks into the cache of compiled models, by result: hit, miss, or refused (found, and not importable).",
    "cache_lookups",
    "result",
)
OBJECTIVE_SECONDS = _of_version(
    "inferd_objective_latency_seconds", "The latency objective, of models that have one.", "objective.latency"
)
OBJECTIVE_RATIO = _of_version(
    "inferd_objective_latency_ratio",
    "Part of the answered requests that are to keep the latency objective, such as 0.99.",
    "objective.latency_ratio",
)
AVAILABILITY_RATIO = _of_version(
    "inferd_objective_availability_ratio",
    "Part of the requests that are to be answered, such as 0.999; what the client got wrong does not count.",
    "objective.availability_ratio",
)

# -- how it runs, and tuning ------------------------------------------------------

STREAMS = _of_device("inferd_streams", "Streams the model is compiled for, as read back.", "streams")
STREAMS_REQUESTED = _of_device(
    "inferd_streams_requested", "Streams asked for; 0 leaves them to OpenVINO.", "streams_requested"
)
THREADS = _of_device("inferd_threads", "CPU threads of all its streams, as read back; 0 if unknown.", "threads")
THREADS_REQUESTED = _of_device(
    "inferd_threads_requested", "CPU threads asked for; 0 leaves them to OpenVINO.", "threads_requested"
)
INFER_REQUESTS = _of_device("inferd_infer_requests", "Runs that may go on at a time.", "infer_requests")
MAX_BATCH_ROWS = _of_device("inferd_max_batch_rows", "Rows that one batch of requests may have.", "max_batch_rows")
INLINE = _of_device(
    "inferd_inline",
    "1 while runs are computed on the event loop's thread, 0 while they are handed over; of several workers, how many "
    "compute them so.",
    "inline",
)
TUNING_DECISIONS = Instrument(
    "inferd_tuning_decisions",
    "counter",
    "Tunings that ended, by how: promoted, kept (as it was), stored (for the next load), wrong_output, failed and "
    "worse (all three rolled back), stopped.",
    ("model", "version", "decision"),
)
TUNING_ACTIVE = _of_version("inferd_tuning_active", "1 while the model version is being tuned.", "tuning.active")
TUNING_SECONDS = Instrument("inferd_tuning_seconds", "counter", "Seconds spent on searches.", _VERSION)
TUNING_GAIN = _of_version(
    "inferd_tuning_gain_ratio",
    "What the choice gives in proportion to OpenVINO's THROUGHPUT hint, as measured last; 0 if unknown.",
    "tuning.gain",
)

# -- security ---------------------------------------------------------------------

CERTIFICATE_EXPIRY = Instrument(
    "inferd_tls_certificate_expiry_timestamp_seconds",
    "gauge",
    "When the certificate that new connections are shown expires, in seconds since 1970; absent without TLS.",
    merged="min",
)
CREDENTIALS_CURRENT = Instrument(
    "inferd_credentials_current",
    "gauge",
    "1 while what is in use is what the files say, 0 while they have changed to what can't be used and what was "
    "before holds. kind: certificate (with its key and the clients' CAs) or tokens.",
    ("kind",),
    merged="min",
)
CREDENTIALS_RELOADS = Instrument(
    "inferd_credentials_reloads",
    "counter",
    "Times the files were read again because they had changed, by result: ok or failed.",
    ("kind", "result"),
    merged="max",
)
REFUSED_CALLS = Instrument(
    "inferd_refused_calls",
    "counter",
    "Calls of any kind refused for their credentials. endpoint: grpc or metrics; reason: missing, malformed, unknown, "
    "expired (all of the token), or scope (the caller is known, and may not do this).",
    ("endpoint", "reason"),
)

# -- process, host, devices -------------------------------------------------------

LOOP_LAG = Instrument(
    "inferd_event_loop_lag_seconds",
    "histogram",
    "How late the event loop ran a timer, sampled ten times a second: time that a request would have waited too.",
)
THREAD_LAG = Instrument(
    "inferd_thread_lag_seconds",
    "histogram",
    "How late a thread that only sleeps got to run, sampled ten times a second: the wait for a CPU and for the GIL.",
)
ACCEPT_WAIT = Instrument(
    "inferd_accept_wait_seconds",
    "histogram",
    "How long calls that the server makes to itself waited in gRPC before inferd saw them: ten a second while they "
    "wait, else four with calls open, or one. What they wait longer than on an idle server is in every request's queue "
    "time.",
)
CPU_THREADS = Instrument("inferd_cpu_threads", "gauge", "Threads that CPU inference may use in all.")
CPU_PERIODS = Instrument(
    "inferd_cpu_quota_periods",
    "counter",
    "Enforcement periods of the control group's CPU quota that had work to do.",
    merged="max",
)
CPU_THROTTLED_PERIODS = Instrument(
    "inferd_cpu_throttled_periods",
    "counter",
    "Of these, periods in which the control group was throttled.",
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
    "Seconds in which some or all (kind full) tasks waited for the resource (cpu, memory or io): the kernel's pressure "
    "stall information, of the control group where it has its own, else of the machine.",
    ("resource", "kind"),
    merged="max",
)
MEMORY_LIMIT = Instrument(
    "inferd_memory_limit_bytes", "gauge", "Memory limit of the control group, where it has one.", merged="max"
)
DEVICE_UP = Instrument(
    "inferd_device_up",
    "gauge",
    "1 while OpenVINO finds the device that models are to run on, else 0.",
    ("device",),
    merged="min",
)
DEVICE_MEMORY_USED = Instrument(
    "inferd_device_memory_used_bytes",
    "gauge",
    "Device memory that this process has allocated, by kind, where the device tells.",
    ("device", "kind"),
)
DEVICE_MEMORY = Instrument(
    "inferd_device_memory_bytes", "gauge", "Memory of the device, where it tells.", ("device",), merged="max"
)
SCRAPE_SECONDS = Instrument(
    "inferd_scrape_duration_seconds",
    "gauge",
    "Seconds that collecting the scrape before this one took.",
    merged="own",
)
WORKERS = Instrument("inferd_workers", "gauge", "Worker processes that are wanted; absent where there is one process.")
WORKERS_READY = Instrument("inferd_workers_ready", "gauge", "Worker processes that serve.")
WORKERS_REPLACED = Instrument(
    "inferd_workers_replaced", "counter", "Worker processes that were started in place of one that had died."
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
        "Workers: how one series comes of those of several worker processes ([workers.md](workers.md)); own is the "
        "supervisor's.\n\n"
        "| series | type | labels | workers | meaning |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


_MERGED = {"histogram": "sum", "info": "once"}


def _suffix(instrument: Instrument) -> str:
    return {"counter": "_total", "info": "_info"}.get(instrument.kind, "")
