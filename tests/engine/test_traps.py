"""The OpenVINO facts in docs/openvino-facts.md, by the same numbers, and the tests that would notice a change.

 1  tests/engine/test_pool.py::test_a_thousand_runs_of_which_many_fail_lose_no_slot
    tests/engine/test_pool.py::test_every_answer_belongs_to_its_own_run
    tests/test_dispatcher.py::test_several_producers_on_several_devices_each_get_their_own_answer
 2  tests/engine/test_slot.py::test_failure_is_told_by_poll_and_wait_and_by_no_callback
    tests/engine/test_slot.py::test_a_cancelled_run_ends_by_poll_raising_and_by_no_callback
    tests/engine/test_slot.py::test_a_slot_works_again_after_a_cancel
    tests/engine/test_traps.py::test_a_process_ends_in_peace_once_its_pool_is_closed
 3  tests/engine/test_traps.py::test_all_callbacks_of_a_compiled_model_come_on_one_thread
    tests/engine/test_pool.py::test_a_loop_that_is_gone_does_not_raise_into_the_device_thread
 4  tests/test_dispatcher.py::test_a_slot_is_refilled_at_its_completion_whatever_the_others_do
 5  no test: microseconds a request are for the benchmarks; a test that times them fails by its neighbours
 6  no test: how long the interpreter's lock makes an inference wait is for the benchmarks, too
 7  tests/engine/test_slot.py::test_a_written_input_is_a_copy
 8  tests/engine/test_traps.py::test_an_output_is_a_view_that_the_next_run_overwrites
 9  tests/engine/test_model.py::test_accuracy_keeps_the_precision_of_the_model
    tests/engine/test_model.py::test_performance_lowers_the_precision_where_the_cpu_can
10  tests/engine/test_traps.py::test_a_compiled_model_can_not_be_tuned
    tests/engine/test_model.py::test_one_blob_serves_every_number_of_streams
11  tests/engine/test_model.py::test_a_batch_of_any_size_up_to_the_bound_needs_no_second_compile
12  no test: the memory of a compiled model and the cost of compiling beside traffic are for the benchmarks
13  tests/engine/test_model.py::test_a_damaged_blob_is_never_loaded
    tests/engine/test_cache.py::test_a_flipped_bit_anywhere_is_detected
    tests/engine/test_cache.py::test_a_killed_writer_leaves_no_half_file_to_read
    tests/engine/test_cache.py::test_the_folder_never_outgrows_its_cap_and_keeps_the_newest
14  tests/engine/test_cpu_budget.py::test_threads_are_the_tightest_of_affinity_and_every_quota
    tests/engine/test_device.py::test_every_family_honours_threads_and_streams
15  tests/config/test_model.py::test_a_property_with_its_own_key_or_a_harmful_one_is_refused_with_the_reason
    tests/engine/test_device.py::test_a_choosing_device_keeps_its_present_candidates_in_order
16  tests/engine/test_runtime.py::test_no_thread_is_started
    tests/engine/test_runtime.py::test_nothing_is_written_to_the_home_folder
17  tests/engine/test_traps.py::test_every_error_is_a_runtime_error
18  tests/engine/test_traps.py::test_state_lives_in_the_infer_request
    tests/engine/test_state.py::test_a_model_that_keeps_state_has_an_infer_request_for_each_sequence
19  no test: how to run benchmark_app for comparison concerns the benchmarks alone
20  tests/engine/test_traps.py::test_strings_lose_their_trailing_zero_bytes
21  tests/engine/test_traps.py::test_under_accuracy_the_property_does_not_tell_the_precision
22  tests/engine/test_traps.py::test_a_reshape_takes_an_impossible_shape_right_after_it_failed_on_it
23  tests/engine/test_slot.py::test_a_device_that_ignores_cancel_ends_the_run_well
24  tests/engine/test_slot.py::test_closing_waits_until_the_device_holds_nothing_of_it
    tests/engine/test_pool.py::test_closing_ends_what_is_in_flight
25  tests/engine/test_number_ranges.py::test_an_exact_operation_keeps_all_32_bits
    tests/engine/test_number_ranges.py::test_what_gives_the_same_bits_does_so_for_all_of_uint32
    tests/engine/test_number_ranges.py::test_what_is_computed_in_float32_is_wrong_beyond
    tests/engine/test_number_ranges.py::test_what_is_too_wide_becomes_another_number
    tests/engine/test_number_ranges.py::test_constants_are_clamped
26  tests/engine/test_runtime.py::test_the_first_look_at_a_tensor_may_come_from_two_threads
27  tests/engine/test_model.py::test_one_blob_serves_every_way_to_place_threads
28  tests/engine/test_sync_slot.py::test_a_run_is_cancelled_while_it_computes
    tests/engine/test_sync_slot.py::test_a_cancel_that_comes_before_the_run_computes_is_not_lost
    tests/engine/test_traps.py::test_infer_calls_no_callback
29  no test: which path is the faster is for the benchmarks
30  tests/engine/test_traps.py::test_threads_of_a_model_that_has_gone_are_taken_over_as_they_are
31  tests/engine/test_slot.py::test_strings_may_be_none_at_all
    tests/engine/test_traps.py::test_asking_for_the_bytes_of_no_strings_ends_the_process
32  tests/engine/test_device.py::test_what_the_cpu_does_not_have_is_not_taken
33  tests/engine/test_preflight.py::test_a_file_that_ends_or_fills_its_reader_is_refused_each_time
    tests/engine/test_traps.py::test_a_client_can_end_the_process_by_an_index
34  tests/engine/test_preflight.py::test_a_file_that_ends_or_fills_its_reader_is_refused_each_time
    tests/engine/test_preflight.py::test_a_file_that_takes_too_long_is_given_up
35  tests/engine/test_pool_replacing.py::test_an_infer_request_is_not_made_while_the_only_stream_computes
    tests/system/test_faults.py::test_a_model_that_hangs_for_ever_is_not_ready_then_anew_and_nobody_else_notices
36  tests/engine/test_slot_shared.py::test_an_output_that_hands_an_input_on_is_not_computed_elsewhere
37  tests/engine/test_slot_shared.py::test_memory_is_let_go_of_when_it_is_given_back
38  tests/engine/test_traps.py::test_a_failure_on_the_calling_thread_is_lost_where_there_is_no_other
39  tests/engine/test_traps.py::test_a_run_that_failed_leaves_the_shape_before_unusable_until_another_was_run
    tests/engine/test_traps.py::test_where_there_is_no_other_shape_nothing_but_a_fresh_graph_helps
    tests/engine/test_traps.py::test_after_a_cancelled_run_the_next_answers_in_its_shape
    tests/engine/test_traps.py::test_what_was_imported_exports_what_can_not_be_imported
40  no test: how soon a cancelled run is over is a matter of its nodes
41  tests/engine/test_traps.py::test_an_operation_with_nothing_to_work_on_leaves_what_was_there
42  tests/engine/test_traps.py::test_a_loop_of_no_turns_gives_what_the_run_before_collected
43  tests/engine/test_traps.py::test_asking_for_the_best_0_ends_the_process
44  tests/engine/test_traps.py::test_an_onnx_constant_without_elements_is_read_as_one_number
45  tests/engine/test_traps.py::test_weights_stay_in_their_file_unless_it_is_not_mapped
    tests/system/test_content.py::test_a_file_that_is_cut_or_written_while_it_is_served_changes_nothing_until_it_is_loaded
46  tests/system/test_content.py::test_files_that_can_not_be_a_version_s_break_their_model_alone_and_say_why
47  tests/system/test_content.py::test_what_is_replaced_is_served_however_that_comes_to_be_known
48  tests/engine/test_traps.py::test_a_log_sum_exp_of_older_onnx_is_taken_over_all_axes
49  tests/engine/test_traps.py::test_a_constant_behind_a_reduction_of_three_dimensions_is_read_along_the_first_one
50  tests/engine/test_traps.py::test_a_constant_behind_a_product_is_read_along_the_last_axis
"""

import ast
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot
from tests import empty_models
from tests.engine import models
from tests.engine.models import op, parameter
from tests.system.failing_models import KINDS, Inputs, long_or_short

ROOT = Path(__file__).parents[2]

ENDS_WITH_A_RUN_IN_FLIGHT = """
import numpy as np
from tests.engine import models
from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot

network = models.slow()
compiled = ov.Core().compile_model(network, "CPU")
signature = _signature(network, parse("", "m"))
pool = Pool("CPU", 2, lambda on_done: InferSlot(compiled.create_infer_request(), signature, on_done))
for slot in range(2):
    pool.start(slot, [[models.tensor(np.zeros((256, 256)))]])
pool.close()
"""


TAKES_THREADS_OVER = """
import os
from tests.engine import models
from inferd.engine.runtime import ov

core, network = ov.Core(), models.slow(400)

def seen_pinned(pinning):
    properties = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": pinning}
    compiled = core.compile_model(network, "CPU", properties)
    assert compiled.get_property("ENABLE_CPU_PINNING") is pinning
    request, seen = compiled.create_infer_request(), False
    request.start_async()
    while not request.wait_for(0):
        seen |= any(len(os.sched_getaffinity(int(thread))) == 1 for thread in os.listdir("/proc/self/task"))
    return seen

# A model's own threads let go of it a moment later: until then there is nothing to take over.
first = FIRST
print(seen_pinned(first), any(seen_pinned(not first) is first for _ in range(100)))
"""

NO_STRINGS = """
import numpy as np
from tests.engine import models
from inferd.engine.runtime import ov

request = ov.Core().compile_model(models.identity([-1], ov.Type.string), "CPU").create_infer_request()
request.set_input_tensor(0, ov.Tensor(np.array([], np.bytes_)))
request.start_async()
request.wait()
assert request.get_output_tensor(0).size == 0
request.get_output_tensor(0).bytes_data
"""


def in_a_process_of_its_own(text: str) -> "subprocess.CompletedProcess[str]":
    path = f"{ROOT}:{ROOT / 'daemon'}"
    return subprocess.run(
        [sys.executable, "-c", text], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def compiled(network: ov.Model, **properties: str) -> ov.CompiledModel:
    return ov.Core().compile_model(network, "CPU", properties)


def test_the_index_above_has_every_number_and_names_tests_that_exist() -> None:
    assert __doc__ is not None
    numbers = [int(n) for n in re.findall(r"^ ?(\d+)  ", __doc__, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    named = re.findall(r"(tests/\S+\.py)::(\w+)", __doc__)
    assert len(named) >= len(numbers) - 4
    for file, test in named:
        functions = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(n, "name")}
        assert test in functions, f"{file} has no {test}"


def test_a_process_ends_in_peace_once_its_pool_is_closed() -> None:
    ended = in_a_process_of_its_own(ENDS_WITH_A_RUN_IN_FLIGHT)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_all_callbacks_of_a_compiled_model_come_on_one_thread() -> None:
    network = models.identity()
    model = compiled(network, NUM_STREAMS="2", INFERENCE_NUM_THREADS="2")
    threads: list[int] = []
    slots = [
        InferSlot(
            model.create_infer_request(),
            _signature(network, parse("", "m")),
            lambda: threads.append(threading.get_ident()),
        )
        for _ in range(4)
    ]
    for _ in range(50):
        for slot in slots:
            slot.start()
        for slot in slots:
            slot.wait()
    for slot in slots:
        slot.close()
    assert len(threads) == 200
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_an_output_is_a_view_that_the_next_run_overwrites() -> None:
    request = compiled(models.scaled(1)).create_infer_request()
    request.infer([np.ones(4, np.float32)])
    first = request.get_output_tensor(0).data
    assert first.tolist() == [1, 1, 1, 1]
    request.infer([np.full(4, 2, np.float32)])
    assert first.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["NUM_STREAMS", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT"])
def test_a_compiled_model_can_not_be_tuned(name: str) -> None:
    model = compiled(models.identity())
    with pytest.raises(RuntimeError, match="not possible to set property of an already compiled model"):
        model.set_property({name: "LATENCY" if name == "PERFORMANCE_HINT" else 1})


@pytest.mark.parametrize(
    "misuse",
    [
        lambda request: request.set_input_tensor(0, ov.Tensor(np.zeros(5, np.float32))),
        lambda request: request.set_input_tensor(0, ov.Tensor(np.zeros(4, np.int32))),
        lambda request: request.set_input_tensor(1, ov.Tensor(np.zeros(4, np.float32))),
        lambda request: request.get_tensor("no such name"),
        lambda _: ov.Core().compile_model(models.identity(), "TPU"),
        lambda _: ov.Core().compile_model(models.identity(), "CPU", {"NO_SUCH_PROPERTY": 1}),
        lambda _: ov.Core().read_model("no such file.xml"),
    ],
    ids=["shape", "type", "index", "name", "device", "property", "file"],
)
def test_every_error_is_a_runtime_error(misuse: Callable[[ov.InferRequest], object]) -> None:
    request = compiled(models.identity()).create_infer_request()
    with pytest.raises(RuntimeError) as raised:
        misuse(request)
    assert type(raised.value) is RuntimeError


def test_state_lives_in_the_infer_request() -> None:
    model = compiled(models.stateful())
    mine, yours = model.create_infer_request(), model.create_infer_request()
    one = np.ones((1, 2), np.float32)
    first = mine.infer([one])[0][0, 0]
    assert mine.infer([one])[0][0, 0] == first + 1
    assert yours.infer([one])[0][0, 0] == first


def test_strings_lose_their_trailing_zero_bytes() -> None:
    request = compiled(models.identity([2], ov.Type.string)).create_infer_request()
    request.set_input_tensor(0, ov.Tensor(np.array([b"a\0", b"\0b"], np.bytes_)))
    request.infer()
    assert request.get_output_tensor(0).bytes_data.tolist() == [b"a", b"\0b"]


def test_under_accuracy_the_property_does_not_tell_the_precision() -> None:
    model = compiled(models.scaled(2), EXECUTION_MODE_HINT="ACCURACY")
    assert model.get_property("INFERENCE_PRECISION_HINT").is_dynamic()


def test_a_reshape_takes_an_impossible_shape_right_after_it_failed_on_it() -> None:
    # And answers in the shape before: a wrong answer that nothing tells from a right one.
    x, to = parameter([4]), parameter([2], ov.Type.i64, "to")
    request = compiled(models.model({"y": op.reshape(x, to, False)}, [x, to])).create_infer_request()
    impossible = [np.zeros(4, np.float32), np.array([3, 2])]
    assert request.infer([np.zeros(4, np.float32), np.array([2, 2])])[0].shape == (2, 2)
    with pytest.raises(RuntimeError, match="conflicts with the reshape pattern"):
        request.infer(impossible)
    assert request.infer(impossible)[0].shape == (2, 2)


def test_infer_calls_no_callback() -> None:
    request = compiled(models.identity()).create_infer_request()
    calls: list[object] = []
    request.set_callback(calls.append, None)
    request.infer([np.zeros(4, np.float32)])
    assert calls == []
    request.start_async()
    request.wait()
    assert len(calls) == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="every thread is on one CPU here")
@pytest.mark.parametrize("pinned", [True, False])
def test_threads_of_a_model_that_has_gone_are_taken_over_as_they_are(pinned: bool) -> None:
    ended = in_a_process_of_its_own(TAKES_THREADS_OVER.replace("FIRST", str(pinned)))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{pinned} True\n", "")


def test_asking_for_the_bytes_of_no_strings_ends_the_process() -> None:
    ended = in_a_process_of_its_own(NO_STRINGS)
    assert (ended.returncode, ended.stderr) == (-signal.SIGFPE, "")


CHOSEN_INDEX = """
import numpy as np
from inferd.engine.runtime import ov
x, index = ov.opset13.parameter([4], np.float32), ov.opset13.parameter([1, 1], np.int64)
compiled = ov.Core().compile_model(ov.Model([ov.opset13.gather_nd(x, index)], [x, index]), "CPU")
compiled([np.zeros(4, np.float32), np.array([[3]])])
print("within", flush=True)
compiled([np.zeros(4, np.float32), np.array([[2_000_000_000]])])
"""


def test_a_client_can_end_the_process_by_an_index() -> None:
    ended = in_a_process_of_its_own(CHOSEN_INDEX)
    assert (ended.returncode, ended.stdout) == (-signal.SIGSEGV, "within\n")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_on_the_calling_thread_is_lost_where_there_is_no_other(threads: int) -> None:
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(models.broadcasting(), "CPU", settings).create_infer_request()
    impossible = [np.zeros(4, np.float32), np.array([3, 2])]
    if threads > 1 and len(os.sched_getaffinity(0)) > 1:
        with pytest.raises(RuntimeError, match="cannot be broadcasted"):
            request.infer(impossible)
    else:
        assert request.infer(impossible)[0].size == 0
    request.start_async(impossible)
    with pytest.raises(RuntimeError, match="cannot be broadcasted"):
        request.wait()


def settled(network: ov.Model, **properties: str) -> tuple[ov.CompiledModel, ov.InferRequest]:
    made = compiled(network, NUM_STREAMS="1", INFERENCE_NUM_THREADS="2", **properties)
    return made, made.create_infer_request()


def fails(request: ov.InferRequest, inputs: Inputs) -> bool:
    request.start_async(list(inputs.values()))
    try:
        request.wait()
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("capacity", ["0", "5000"])
def test_a_run_that_failed_leaves_the_shape_before_unusable_until_another_was_run(capacity: str) -> None:
    kind = KINDS["short_signals"]()
    model, request = settled(kind.network, CPU_RUNTIME_CACHE_CAPACITY=capacity)
    one, other, *_ = kind.good
    assert not fails(request, one)
    assert fails(request, kind.bad[0])
    assert [fails(request, one) for _ in range(3)] == [True] * 3
    assert fails(model.create_infer_request(), one)
    assert not fails(request, other)
    assert not fails(request, one)


def test_where_there_is_no_other_shape_nothing_but_a_fresh_graph_helps() -> None:
    kind = KINDS["picked_fixed_rows"]()
    model, request = settled(kind.network)
    blob = model.export_model()
    assert not fails(request, kind.good[0])
    for bad in kind.bad:
        assert fails(request, bad)
        assert fails(request, kind.good[0])
    fresh = ov.Core().import_model(blob, "CPU", {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "2"})
    assert not fails(fresh.create_infer_request(), kind.good[0])


def test_after_a_cancelled_run_the_next_answers_in_its_shape() -> None:
    # As a good answer: nothing tells that it is wrong. It takes a cancel that comes while the right node computes.
    small, large = {"x": np.ones((2, 256), np.float32)}, {"x": np.ones((4000, 256), np.float32)}
    _, request = settled(long_or_short(300))
    seen = []
    for _ in range(100):
        assert not fails(request, small)
        request.start_async(list(large.values()))
        # It has to have begun.
        request.wait_for(20)
        request.cancel()
        with suppress(RuntimeError):
            request.wait()
        assert not fails(request, small)
        seen.append(list(request.get_output_tensor(0).shape))
        if seen[-1] != [2, 256]:
            break
        assert not fails(request, {"x": np.ones((3, 256), np.float32)})
    assert seen[-1] == [4000, 256]


def test_what_was_imported_exports_what_can_not_be_imported() -> None:
    core = ov.Core()
    imported = core.import_model(core.compile_model(models.scaled(2), "CPU").export_model(), "CPU")
    with pytest.raises(RuntimeError, match="Unable to read the model"):
        core.import_model(imported.export_model(), "CPU")


@pytest.mark.parametrize("mapped", [True, False])
def test_weights_stay_in_their_file_unless_it_is_not_mapped(mapped: bool, tmp_path: Path) -> None:
    x = models.parameter([-1], ov.Type.i32)
    rows = models.op.constant(np.ones((4096, 8), np.float32))
    file = models.save(models.model({"y": models.op.gather(rows, x, models.op.constant(np.int32(0)))}, [x]), tmp_path)
    core = ov.Core()
    compiled = core.compile_model(core.read_model(file, config={"ENABLE_MMAP": mapped}), "CPU")
    with file.with_suffix(".bin").open("r+b") as weights:
        weights.write(np.full((4096, 8), 5, np.float32).tobytes())
    assert compiled([np.array([7], np.int32)])[0][0, 0] == (5 if mapped else 1)


def test_an_operation_with_nothing_to_work_on_leaves_what_was_there() -> None:
    x = parameter([-1, 2])
    first = op.gather(x, op.constant(0), op.constant(0))
    request = compiled(models.model({"y": first}, [x])).create_infer_request()
    assert request.infer([np.full((3, 2), 7, np.float32)])[0].tolist() == [7, 7]
    assert request.infer([np.zeros((0, 2), np.float32)])[0].tolist() == [7, 7]


def test_a_loop_of_no_turns_gives_what_the_run_before_collected(tmp_path: Path) -> None:
    network = ov.Core().read_model(empty_models.loop()(tmp_path))
    request = compiled(network).create_infer_request()
    request.infer({"turns": np.array(2), "x": np.array([7, 7], np.float32)})
    last, collected = request.infer({"turns": np.array(0), "x": np.array([1, 1], np.float32)}).values()
    assert (last.tolist(), collected.tolist()) == ([1, 1], [[14, 14], [21, 21]])


BEST_0 = """
import numpy as np
from inferd.engine.runtime import ov
x, k = ov.opset13.parameter([-1], np.float32), ov.opset13.parameter([], np.int64)
best = ov.opset13.topk(x, k, 0, "max", "value")
request = ov.Core().compile_model(ov.Model([best.output(0)], [x, k]), "CPU").create_infer_request()
print(request.infer([np.zeros(5, np.float32), np.array(3)])[0].shape, flush=True)
for _ in range(2):
    try:
        request.infer([np.zeros(5, np.float32), np.array(0)])
    except RuntimeError:
        print("raised", flush=True)
"""


def test_asking_for_the_best_0_ends_the_process() -> None:
    ended = in_a_process_of_its_own(BEST_0)
    assert (ended.returncode, ended.stdout) == (-signal.SIGSEGV, "(3,)\nraised\n")


def test_an_onnx_constant_without_elements_is_read_as_one_number(tmp_path: Path) -> None:
    network = ov.Core().read_model(empty_models.empty_onnx_constant()(tmp_path))
    request = compiled(network).create_infer_request()
    answer = request.infer({"some": np.array(False), "x": np.array([1, 2], np.float32)})
    assert (answer["y"].tolist(), answer["b"].tolist()) == ([0], 0)


def test_a_log_sum_exp_of_older_onnx_is_taken_over_all_axes() -> None:
    rows = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    by_row = np.log(np.exp(rows).sum(1))
    for opset, answer in ((17, np.log(np.exp(rows).sum())), (18, by_row)):
        attributes, inputs = ({"axes": [1]}, ["x"]) if opset < 18 else ({}, ["x", "axes"])
        axes = [numpy_helper.from_array(np.array([1], np.int64), "axes")] if opset >= 18 else []
        graph = helper.make_graph(
            [helper.make_node("ReduceLogSumExp", inputs, ["y"], keepdims=0, **attributes)],
            "older",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            axes,
        )
        file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        network = ov.Core().read_model(file.SerializeToString())
        np.testing.assert_allclose(compiled(network)(rows)[0], answer, rtol=1e-5)


def test_a_constant_behind_a_reduction_of_three_dimensions_is_read_along_the_first_one() -> None:
    x = op.parameter([3, 3, 4], np.float32)
    added = np.array([100, 200, 300], np.float32)
    reduced = op.reduce_sum(x, op.constant(np.array([2])), keep_dims=True)
    network = ov.Model([op.add(reduced, op.constant(added.reshape(1, 3, 1))).output(0)], [x])
    rows = np.arange(36, dtype=np.float32).reshape(3, 3, 4)
    sums = rows.sum(2, keepdims=True)
    # Right were sums + added.reshape(1, 3, 1). With more rows than elements it reads what lies behind them.
    assert compiled(network)(rows)[0].tolist() == (sums + added.reshape(3, 1, 1)).tolist()


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 1, 1)])
def test_a_constant_behind_a_product_is_read_along_the_last_axis(shape: tuple[int, ...]) -> None:
    x = op.parameter([-1, 3, 5, 4], np.float32)
    added = np.array([100, 200, 300], np.float32)
    weights = np.ones((4, 3), np.float32)
    product = op.matmul(x, op.constant(weights), False, False)
    network = ov.Model([op.add(product, op.constant(added.reshape(shape))).output(0)], [x])
    rows = np.arange(120, dtype=np.float32).reshape(2, 3, 5, 4)
    # Right were rows @ weights + added.reshape(1, 3, 1, 1).
    np.testing.assert_allclose(compiled(network, INFERENCE_PRECISION_HINT="f32")(rows)[0], rows @ weights + added)
