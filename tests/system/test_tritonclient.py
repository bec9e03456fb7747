"""tritonclient works with the daemon unchanged: its sync client, its aio client and its streams."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from inferd.tensors import DType
from tests import models
from tests.system import clients
from tests.system.daemon import Daemon

pytestmark = pytest.mark.system

Call = tuple[str, dict[str, Any]]
Ask = Callable[..., list[Any]]

SCRIPT = Path(__file__).with_name("tritonclient_calls.py").read_text()

# Each type's own bounds, where it has some, and shape [2,2]; BYTES as tritonclient_calls.py wants them.
VALUES = {
    DType.BOOL: [[True, False], [False, True]],
    DType.INT8: [[-(2**7), 2**7 - 1], [0, 1]],
    DType.INT16: [[-(2**15), 2**15 - 1], [0, 1]],
    DType.INT32: [[-(2**31), 2**31 - 1], [0, 1]],
    DType.INT64: [[-(2**63), 2**63 - 1], [0, 1]],
    DType.UINT8: [[0, 2**8 - 1], [1, 2]],
    DType.UINT16: [[0, 2**16 - 1], [1, 2]],
    DType.UINT32: [[0, 2**32 - 1], [1, 2]],
    DType.UINT64: [[0, 2**64 - 1], [1, 2]],
    DType.FP16: [[-65504.0, 2.0**-24], [0.0, 1.5]],
    DType.BF16: [[-(2.0**127), 2.0**-133], [0.0, 1.5]],
    DType.FP32: [[-(2.0**127), 2.0**-149], [0.0, 1.5]],
    DType.FP64: [[-1.7976931348623157e308, 5e-324], [0.0, 1 / 3]],
    DType.BYTES: [["", "text"], ["a zero\0inside", "\xff\xfe"]],
}
SCALARS = {DType.BOOL: True, DType.INT64: -(2**63), DType.FP32: 1.5, DType.BYTES: "text"}


# Tensors as the calls take and show them: what `fast` echoes, what `slow` answers, what `sums` takes.
FAST = {"x": ["INT32", [7]]}
SLOW = {"y": ["FP32", [1.5]]}
SUMS = {"left": ["FP32", [[5.0, 6.0]]], "right": ["FP32", [[1.0, 2.0]]]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for dtype in DType:
        models.save(models.identity(dtype, [2, 2]), root, f"array-{dtype.wire}")
    for dtype in SCALARS:
        models.save(models.identity(dtype, []), root, f"scalar-{dtype.wire}")
    models.save(models.sum_and_difference([-1, 2]), root, "sums", settings="[batching]\nmax_size = 8\n")
    (root / "sums" / "1" / "labels.txt").write_text("first\nsecond\n")
    models.save(models.identity(DType.INT32, [1]), root, "fast")
    models.save(models.slow(200), root, "slow")
    models.save(models.identity(DType.INT32, [1]), root, "passing", version=3)
    return root


@pytest.fixture(scope="module")
def server(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    with Daemon(repository, "--repository-control", "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of tritonclient's gRPC clients."""
    return str(request.param)


@pytest.fixture
def ask(server: Daemon, kind: str) -> Ask:
    """Makes calls, one after another, and gives what came of each; see tritonclient_calls.py."""
    return lambda *calls: clients.run(SCRIPT, server.grpc, kind, json.dumps(calls))


def call(method: str, **arguments: Any) -> Call:
    return method, arguments


def request(model: str, inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_name": model, "inputs": inputs, **more}


def infer(model: str, inputs: Mapping[str, Any], **more: Any) -> Call:
    return "infer", request(model, inputs, **more)


def fast(request_id: str, **more: Any) -> dict[str, Any]:
    return request("fast", FAST, request_id=request_id, **more)


def slow(request_id: str, **more: Any) -> dict[str, Any]:
    return request("slow", {"x": ["FP32", [1.5]]}, request_id=request_id, **more)


def stream(*requests: Mapping[str, Any], **headers: str) -> Call:
    return call("stream", requests=requests, headers=headers or None)


def answer(model: str, outputs: Mapping[str, Any], request_id: str = "", version: str = "1") -> dict[str, Any]:
    return {"model": model, "version": version, "id": request_id, "parameters": {}, "outputs": outputs}


def failure(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


# -- what it reads ----------------------------------------------------------------


def test_server_and_models_are_live_and_ready(ask: Ask) -> None:
    assert ask(
        call("is_server_live"),
        call("is_server_ready"),
        call("is_model_ready", model_name="sums"),
        call("is_model_ready", model_name="sums", model_version="1"),
    ) == [True, True, True, True]


def test_the_server_says_its_name_and_extensions(ask: Ask) -> None:
    [metadata] = ask(call("get_server_metadata"))

    assert metadata["name"] == "inferd"
    shown = {"statistics", "model_repository", "model_configuration", "sequence", "classification", "parameters"}
    assert shown <= set(metadata["extensions"])


def test_a_models_tensors_are_shown_with_the_batch_and_configured_without(ask: Ask) -> None:
    metadata, answered = ask(call("get_model_metadata", model_name="sums"), call("get_model_config", model_name="sums"))
    config = answered["config"]

    assert metadata["versions"] == ["1"]
    assert [(t["name"], t["datatype"], t["shape"]) for t in metadata["inputs"] + metadata["outputs"]] == [
        (name, "FP32", ["-1", "2"]) for name in ("left", "right", "sum", "difference")
    ]
    assert (config["name"], config["max_batch_size"]) == ("sums", 8)
    # What says whether clients are to make batches, sequences or none.
    assert config["dynamic_batching"] == {} == config["model_transaction_policy"]
    assert "sequence_batching" not in config
    assert [(t["name"], t["data_type"], t["dims"]) for t in config["input"] + config["output"]] == [
        (name, "TYPE_FP32", ["2"]) for name in ("left", "right", "sum", "difference")
    ]


def test_classes_are_the_largest_values_with_their_labels(ask: Ask) -> None:
    rows = {"left": ["FP32", [[1, 2], [4, 3]]], "right": ["FP32", [[0, 0], [0.5, 0.25]]]}

    one, config = ask(
        infer("sums", rows, outputs={"sum": 1, "difference": 0}), call("get_model_config", model_name="sums")
    )

    assert one["outputs"]["sum"] == ["BYTES", [["2.000000:1:second"], ["4.500000:0:first"]]]
    assert one["outputs"]["difference"] == ["FP32", [[1, 2], [3.5, 2.75]]]
    assert {output["label_filename"] for output in config["config"]["output"]} == {"labels.txt"}


def test_parameters_of_other_servers_are_ignored(ask: Ask) -> None:
    [answered] = ask(infer("fast", FAST, parameters={"max_tokens": 5, "content_type": "np"}))

    assert answered == answer("fast", FAST)


def test_statistics_count_inferences_rows_and_failures(ask: Ask) -> None:
    two_rows = {"left": ["FP32", [[1, 2], [3, 4]]], "right": ["FP32", [[5, 6], [7, 8]]]}

    def counts(statistics: Mapping[str, Any]) -> dict[str, int]:
        [stats] = statistics["model_stats"]
        stages = stats["inference_stats"]
        counted = {name: stages[name].get("count", 0) for name in stages if not name.startswith("cache")}
        counted |= {name: stats.get(name, 0) for name in ("inference_count", "execution_count")}
        return {name: int(count) for name, count in counted.items()}

    before, *_, after = ask(
        call("get_inference_statistics", model_name="sums"),
        infer("sums", SUMS),
        infer("sums", two_rows),
        infer("sums", {"left": ["FP32", [[1, 2]]]}),
        call("get_inference_statistics", model_name="sums", model_version="1"),
    )

    new = {name: count - counts(before)[name] for name, count in counts(after).items()}
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert new == {**dict.fromkeys(stages, 2), "fail": 1, "execution_count": 2, "inference_count": 3}


def test_statistics_without_a_name_are_those_of_all_models(ask: Ask, repository: Path) -> None:
    [statistics] = ask(call("get_inference_statistics"))

    assert {s["name"] for s in statistics["model_stats"]} == {folder.name for folder in repository.iterdir()}


def test_trace_and_log_settings_are_shown_and_stay_as_they_are(ask: Ask) -> None:
    trace, log, *changes = ask(
        call("get_trace_settings"),
        call("get_log_settings"),
        call("update_trace_settings", settings={"trace_level": "TENSORS"}),
        call("update_log_settings", settings={"log_verbose_level": 1}),
    )

    assert trace["settings"]["trace_level"] == {"value": ["OFF"]}
    assert log["settings"]["log_level"] == {"string_param": "info"}
    assert [change["code"] for change in changes] == ["PERMISSION_DENIED"] * 2
    assert "trace_level" in changes[0]["message"]
    assert "log_verbose_level" in changes[1]["message"]


def test_no_shared_memory_is_registered_and_unregistering_it_succeeds(ask: Ask) -> None:
    assert ask(
        call("get_system_shared_memory_status"),
        call("unregister_system_shared_memory"),
        call("get_cuda_shared_memory_status"),
        call("unregister_cuda_shared_memory"),
    ) == [{}, None, {}, None]


# -- what it changes --------------------------------------------------------------


def test_the_index_follows_unloading_and_loading(ask: Ask) -> None:
    def states(index: Mapping[str, Any]) -> dict[tuple[str, str], str]:
        return {(m["name"], m["version"]): m["state"] for m in index["models"]}

    index = call("get_model_repository_index")
    use = infer("passing", FAST)
    before, unloaded, without, gone, loaded, after, back = ask(
        index,
        call("unload_model", model_name="passing"),
        index,
        use,
        call("load_model", model_name="passing"),
        index,
        use,
    )

    assert set(states(before).values()) == {"READY"}
    assert (unloaded, loaded) == (None, None)
    assert states(without) == {**states(before), ("passing", "3"): "UNAVAILABLE"}
    assert gone == failure("UNAVAILABLE", "model 'passing' is unavailable: unloaded")
    assert states(after) == states(before)
    assert back == answer("passing", FAST, version="3")


def test_only_what_is_on_disk_can_be_loaded(ask: Ask) -> None:
    unknown, overridden = ask(
        call("load_model", model_name="nope"), call("load_model", model_name="passing", config="{}")
    )

    assert unknown == failure("NOT_FOUND", "unknown model 'nope'")
    assert overridden["code"] == "INVALID_ARGUMENT"
    assert "'config' is not accepted" in overridden["message"]


def test_loading_and_unloading_are_denied_without_repository_control(demo_server: Daemon, kind: str) -> None:
    calls = [call("load_model", model_name="magika"), call("unload_model", model_name="magika")]

    *denials, ready = clients.run(
        SCRIPT, demo_server.grpc, kind, json.dumps([*calls, call("is_model_ready", model_name="magika")])
    )

    assert [denial["code"] for denial in denials] == ["PERMISSION_DENIED"] * 2
    assert all("--repository-control" in denial["message"] for denial in denials)
    assert ready is True


# -- inference --------------------------------------------------------------------


def test_arrays_of_every_type_come_back_as_they_went(ask: Ask) -> None:
    sent = {f"array-{dtype.wire}": [dtype.wire, values] for dtype, values in VALUES.items()}

    received = ask(*(infer(model, {"x": tensor}) for model, tensor in sent.items()))

    assert set(VALUES) == set(DType)
    assert received == [answer(model, {"x": tensor}) for model, tensor in sent.items()]


def test_scalars_come_back_as_they_went(ask: Ask) -> None:
    sent = {f"scalar-{dtype.wire}": [dtype.wire, value] for dtype, value in SCALARS.items()}

    received = ask(*(infer(model, {"x": tensor}) for model, tensor in sent.items()))

    assert received == [answer(model, {"x": tensor}) for model, tensor in sent.items()]


def test_outputs_are_all_or_those_asked_for_in_that_order(ask: Ask) -> None:
    total, difference = ["FP32", [[6.0, 8.0]]], ["FP32", [[4.0, 4.0]]]

    everything, one, swapped = ask(
        infer("sums", SUMS),
        infer("sums", SUMS, outputs={"difference": 0}),
        infer("sums", SUMS, outputs={"difference": 0, "sum": 0}),
    )

    assert everything == answer("sums", {"sum": total, "difference": difference})
    assert one == answer("sums", {"difference": difference})
    assert swapped == everything
    assert list(swapped["outputs"]) == ["difference", "sum"]


def test_inputs_are_told_apart_by_name(ask: Ask) -> None:
    swapped = dict(reversed(SUMS.items()))

    assert list(swapped) == ["right", "left"]
    assert ask(infer("sums", swapped)) == ask(infer("sums", SUMS))


def test_ids_versions_and_parameters_are_taken(ask: Ask) -> None:
    assert ask(
        infer("fast", FAST, request_id="mine", model_version="1"),
        infer("fast", FAST, timeout=60_000_000, priority=1),
        infer("fast", FAST, client_timeout=60, compression_algorithm="gzip"),
    ) == [answer("fast", FAST, "mine"), answer("fast", FAST), answer("fast", FAST)]


def test_a_request_is_given_up_at_its_timeout(ask: Ask) -> None:
    asked, of_the_client, after = ask(
        ("infer", slow("", timeout=1000)), ("infer", slow("", client_timeout=0.02)), ("infer", slow(""))
    )

    assert asked["code"] == "DEADLINE_EXCEEDED"
    assert asked["message"].startswith("model 'slow': deadline passed while the request was ")
    assert of_the_client["code"] == "DEADLINE_EXCEEDED"
    assert after == answer("slow", SLOW)


def test_callbacks_get_answers_and_errors(server: Daemon) -> None:
    calls = [call("async_infer", **fast("a")), call("async_infer", **request("nope", FAST))]

    assert clients.run(SCRIPT, server.grpc, "sync", json.dumps(calls)) == [
        answer("fast", FAST, "a"),
        failure("NOT_FOUND", "unknown model 'nope'"),
    ]


def test_mistakes_are_named(ask: Ask) -> None:
    right, wrong = FAST["x"], ["INT32", [7, 8]]
    mistakes = [
        (infer("nope", {"x": right}), "NOT_FOUND", "unknown model 'nope'"),
        (infer("fast", {"x": right}, model_version="2"), "NOT_FOUND", "model 'fast' has no version '2'; versions: 1"),
        (infer("fast", {"z": right}), "INVALID_ARGUMENT", "model 'fast': unknown input 'z'; inputs: x"),
        (infer("fast", {}), "INVALID_ARGUMENT", "model 'fast': input 'x' is missing; inputs: x"),
        (
            infer("fast", {"x": ["INT64", [7]]}),
            "INVALID_ARGUMENT",
            "model 'fast': input 'x' must be INT32, got 'INT64'",
        ),
        (infer("fast", {"x": wrong}), "INVALID_ARGUMENT", "model 'fast': input 'x' must have shape [1], got [2]"),
        (
            infer("fast", {"x": right}, outputs={"y": 0}),
            "INVALID_ARGUMENT",
            "model 'fast': unknown output 'y'; outputs: x",
        ),
        (
            infer("fast", {"x": right}, parameters={"sequence_colour": 1}),
            "INVALID_ARGUMENT",
            "model 'fast': unknown request parameter 'sequence_colour'",
        ),
    ]

    failures = ask(*(mistaken for mistaken, _, _ in mistakes))

    for failed, (mistaken, code, message) in zip(failures, mistakes, strict=True):
        assert failed["code"] == code, mistaken
        assert failed["message"].startswith(message), mistaken


# -- streams ----------------------------------------------------------------------


def test_a_stream_answers_in_request_order(ask: Ask) -> None:
    [answers] = ask(stream(slow("1"), fast("2"), fast("3"), slow("4"), fast("5")))

    assert [a["id"] for a in answers] == ["1", "2", "3", "4", "5"]
    assert [a["outputs"] for a in answers] == [SLOW, FAST, FAST, SLOW, FAST]


def test_a_stream_answers_as_requests_complete_when_the_client_asks_for_that(ask: Ask) -> None:
    [answers] = ask(stream(slow("slow"), fast("1"), fast("2"), **{"inferd-unordered": "true"}))

    *first, last = [a["id"] for a in answers]
    assert (sorted(first), last) == (["1", "2"], "slow")


def test_a_failed_request_tells_code_and_id_and_leaves_the_stream_alone(ask: Ask) -> None:
    mistaken = request("fast", {"x": ["INT64", [7]]}, request_id="mistaken")
    unknown = request("nope", FAST, request_id="unknown")

    [answers] = ask(stream(mistaken, fast("1"), unknown, slow("late", timeout=1000), fast("2")))

    assert answers[0]["message"] == "[INVALID_ARGUMENT] request 'mistaken': " + (
        "model 'fast': input 'x' must be INT32, got 'INT64'"
    )
    assert answers[1] == answer("fast", FAST, "1")
    assert answers[2]["message"] == "[NOT_FOUND] request 'unknown': unknown model 'nope'"
    assert answers[3]["message"].startswith("[DEADLINE_EXCEEDED] request 'late': model 'slow': deadline passed ")
    assert answers[4] == answer("fast", FAST, "2")
    assert len(answers) == 5


def test_an_answer_is_marked_final_when_the_client_asks_for_that(server: Daemon) -> None:
    # tritonclient's aio client has no such argument.
    marked = stream(fast("1", enable_empty_final_response=True), fast("2"))

    [answers] = clients.run(SCRIPT, server.grpc, "sync", json.dumps([marked]))

    assert [a["parameters"] for a in answers] == [{"triton_final_response": {"boolParam": True}}, {}]
    assert [a["outputs"] for a in answers] == [FAST, FAST]


def test_a_stream_may_be_empty(ask: Ask) -> None:
    assert ask(stream()) == [[]]
