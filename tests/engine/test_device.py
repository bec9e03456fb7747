"""Device strings resolve to the devices present; compiled models run with the requested settings."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.config.model import ExecutionSettings, ModelConfig, ObjectiveSettings
from inferd.engine.device import Effective, compile_properties, family, read_back, resolve
from inferd.engine.runtime import ov
from inferd.engine.topology import cpu_topology
from inferd.errors import DeviceAbsent

CPU_ONLY = ["CPU"]
ONE_GPU = ["CPU", "GPU"]
TWO_GPUS = ["CPU", "GPU.0", "GPU.1", "NPU"]


@pytest.mark.parametrize(
    ("requested", "present", "resolved"),
    [
        ("CPU", CPU_ONLY, "CPU"),
        ("GPU", ONE_GPU, "GPU"),
        ("GPU", TWO_GPUS, "GPU"),
        ("GPU.0", ONE_GPU, "GPU.0"),
        ("GPU.1", TWO_GPUS, "GPU.1"),
        ("GPU.1.0", TWO_GPUS, "GPU.1.0"),
        ("NPU", TWO_GPUS, "NPU"),
        ("AUTO", CPU_ONLY, "AUTO"),
        ("AUTO:GPU,CPU", CPU_ONLY, "AUTO:CPU"),
        ("AUTO:NPU,GPU.1,CPU", TWO_GPUS, "AUTO:NPU,GPU.1,CPU"),
        ("MULTI:GPU.1,GPU.0,CPU", ONE_GPU, "MULTI:GPU.0,CPU"),
        ("HETERO:GPU,CPU", ONE_GPU, "HETERO:GPU,CPU"),
        ("BATCH:GPU(16)", ONE_GPU, "BATCH:GPU(16)"),
        ("BATCH:CPU", CPU_ONLY, "BATCH:CPU"),
    ],
)
def test_a_device_that_is_present_resolves(requested: str, present: list[str], resolved: str) -> None:
    assert resolve(requested, present) == resolved


@pytest.mark.parametrize(
    ("requested", "present", "absent"),
    [
        ("GPU", CPU_ONLY, "GPU"),
        ("GPU.1", ONE_GPU, "GPU.1"),
        ("GPU.10", [*TWO_GPUS, "GPU.11"], "GPU.10"),
        ("NPU", ONE_GPU, "NPU"),
        ("AUTO:GPU,NPU", CPU_ONLY, "GPU or NPU"),
        ("MULTI:GPU", CPU_ONLY, "GPU"),
        ("HETERO:GPU,NPU,CPU", CPU_ONLY, "GPU, NPU"),
        ("BATCH:GPU(16)", CPU_ONLY, "GPU"),
        ("AUTO", [], "a device"),
        ("MULTI", CPU_ONLY, "a list of devices"),
        ("HETERO", CPU_ONLY, "a list of devices"),
    ],
)
def test_an_absent_device_is_named_with_those_present(requested: str, present: list[str], absent: str) -> None:
    with pytest.raises(DeviceAbsent) as caught:
        resolve(requested, present)
    assert caught.value.absent == absent
    assert caught.value.present == tuple(present)


NAMES = st.sampled_from(["CPU", "GPU.0", "GPU.1", "NPU"])


@given(kind=st.sampled_from(["AUTO", "MULTI"]), wanted=st.lists(NAMES, min_size=1, unique=True), present=st.sets(NAMES))
def test_a_choosing_device_keeps_its_present_candidates_in_order(
    kind: str, wanted: list[str], present: set[str]
) -> None:
    kept = [name for name in wanted if name in present]
    requested = f"{kind}:{','.join(wanted)}"
    if kept:
        assert resolve(requested, sorted(present)) == f"{kind}:{','.join(kept)}"
    else:
        with pytest.raises(DeviceAbsent):
            resolve(requested, sorted(present))


@pytest.mark.parametrize(
    ("device", "expected"),
    [("CPU", "CPU"), ("GPU.1.0", "GPU"), ("AUTO", "AUTO"), ("HETERO:GPU.1,CPU", "HETERO"), ("BATCH:GPU(16)", "BATCH")],
)
def test_the_family_is_what_stands_before_index_and_list(device: str, expected: str) -> None:
    assert family(device) == expected


def config(goal: str = "throughput", properties: dict[str, Any] | None = None, **execution: Any) -> ModelConfig:
    return ModelConfig(
        objective=ObjectiveSettings(goal=goal), execution=ExecutionSettings(**execution), properties=properties or {}
    )


HINTS = {"PERFORMANCE_HINT": "THROUGHPUT", "EXECUTION_MODE_HINT": "ACCURACY"}


@pytest.mark.parametrize(
    ("device", "own"),
    [
        ("CPU", {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 2}),
        ("GPU.1", {"NUM_STREAMS": 2}),
        ("NPU", {}),
        ("AUTO", {"DEVICE_PROPERTIES": {"CPU": {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 2}}}),
        ("AUTO:NPU", {}),
        (
            "HETERO:GPU.1,CPU",
            {"DEVICE_PROPERTIES": {"GPU.1": {"NUM_STREAMS": 2}, "CPU": {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 2}}},
        ),
        ("BATCH:CPU(4)", {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 2}),
        ("BATCH:GPU(16)", {"NUM_STREAMS": 2}),
    ],
)
def test_each_family_gets_the_properties_it_understands(device: str, own: dict[str, Any]) -> None:
    assert compile_properties(device, config(streams=2, threads=3), cpu_threads=8) == HINTS | own


@given(asked=st.integers(0, 64), allowed=st.integers(1, 64))
def test_threads_never_exceed_the_cpu_budget(asked: int, allowed: int) -> None:
    threads = compile_properties("CPU", config(threads=asked), allowed)["INFERENCE_NUM_THREADS"]
    assert threads == (min(asked, allowed) if asked else allowed)


def test_precision_and_streams_left_open_are_not_passed() -> None:
    assert compile_properties("GPU", config(goal="latency", mode="performance"), 4) == {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "PERFORMANCE",
    }


def test_further_properties_are_merged_last() -> None:
    found = compile_properties("CPU", config(precision="f32", properties={"PERF_COUNT": True}), 4)
    assert found["INFERENCE_PRECISION_HINT"] == "f32"
    assert list(found)[-1] == "PERF_COUNT"


CPU_CHOICES = {"pinning": "off", "hyper_threading": "on", "core_type": "performance"}
ASKED = {"ENABLE_CPU_PINNING": False, "ENABLE_HYPER_THREADING": True, "SCHEDULING_CORE_TYPE": "PCORE_ONLY"}
ON_CPU = ASKED | {"INFERENCE_NUM_THREADS": 4}


@pytest.mark.parametrize(
    ("device", "own"),
    [
        ("CPU", ON_CPU),
        ("GPU.1", {}),
        ("NPU", {}),
        ("AUTO:GPU,CPU", {"DEVICE_PROPERTIES": {"CPU": ON_CPU}}),
        ("HETERO:GPU,CPU", {"DEVICE_PROPERTIES": {"CPU": ON_CPU}}),
        ("BATCH:CPU(4)", ON_CPU),
        ("BATCH:GPU(4)", {}),
    ],
)
def test_what_concerns_cpu_threads_is_passed_to_the_cpu_alone(device: str, own: dict[str, Any]) -> None:
    assert compile_properties(device, config(**CPU_CHOICES), cpu_threads=4) == HINTS | own


@pytest.mark.parametrize(
    ("execution", "passed"),
    [
        ({"pinning": "on"}, {"ENABLE_CPU_PINNING": True}),
        ({"pinning": "off"}, {"ENABLE_CPU_PINNING": False}),
        ({"hyper_threading": "on"}, {"ENABLE_HYPER_THREADING": True}),
        ({"hyper_threading": "off"}, {"ENABLE_HYPER_THREADING": False}),
        ({"core_type": "any"}, {"SCHEDULING_CORE_TYPE": "ANY_CORE"}),
        ({"core_type": "performance"}, {"SCHEDULING_CORE_TYPE": "PCORE_ONLY"}),
        ({"core_type": "efficient"}, {"SCHEDULING_CORE_TYPE": "ECORE_ONLY"}),
        ({"pinning": "auto", "hyper_threading": "auto", "core_type": "auto", "path": "sync"}, {}),
    ],
    ids=str,
)
def test_each_choice_has_its_property_and_auto_has_none(execution: dict[str, str], passed: dict[str, Any]) -> None:
    found = compile_properties("CPU", config(**execution), cpu_threads=4)
    assert found == HINTS | {"INFERENCE_NUM_THREADS": 4} | passed


# -- on the real CPU --------------------------------------------------------------

COMPOUND = ["CPU", "AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU", "BATCH:CPU", "BATCH:CPU(4)"]
bf16_cpu = pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU computes no bf16"
)


@pytest.fixture(scope="module")
def core() -> ov.Core:
    return ov.Core()


def tiny() -> ov.Model:
    x = ov.opset13.parameter([1, 32], np.float32, name="x")
    weights = np.random.default_rng(3).standard_normal((32, 32)).astype(np.float32)
    return ov.Model([ov.opset13.relu(ov.opset13.matmul(x, weights, False, False))], [x], "tiny")


def compiled_with(core: ov.Core, device: str, settings: ModelConfig, cpu_threads: int) -> Effective:
    return read_back(core.compile_model(tiny(), device, compile_properties(device, settings, cpu_threads)))


@pytest.mark.parametrize("device", COMPOUND)
def test_every_family_runs_in_f32_under_accuracy(core: ov.Core, device: str) -> None:
    found = compiled_with(core, device, config(), cpu_threads=1)
    assert (found.precision, found.execution_devices) == ("f32", ("CPU",))


@bf16_cpu
@pytest.mark.parametrize("device", COMPOUND)
@pytest.mark.parametrize("execution", [{"mode": "performance"}, {"precision": "bf16"}], ids=str)
def test_every_family_runs_in_bf16_when_allowed_to(core: ov.Core, device: str, execution: dict[str, str]) -> None:
    assert compiled_with(core, device, config(**execution), cpu_threads=1).precision == "bf16"


@pytest.mark.parametrize("device", COMPOUND)
def test_every_family_honours_threads_and_streams(core: ov.Core, device: str) -> None:
    found = compiled_with(core, device, config(streams=1, threads=64), cpu_threads=1)
    assert (found.threads, found.streams) == (1, 1)
    assert found.infer_requests >= 1


@pytest.mark.parametrize("device", ["CPU", "AUTO:CPU", "MULTI:CPU", "BATCH:CPU", "HETERO:CPU"])
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_the_hints_are_read_back(core: ov.Core, device: str, goal: str) -> None:
    found = compiled_with(core, device, config(goal=goal), cpu_threads=1)
    assert (found.performance_hint, found.execution_mode) == (goal, "accuracy")


@pytest.mark.parametrize("device", COMPOUND)
@pytest.mark.parametrize("pinning", ["on", "off"])
def test_every_family_honours_pinning(core: ov.Core, device: str, pinning: str) -> None:
    assert compiled_with(core, device, config(pinning=pinning), cpu_threads=1).choices["pinning"] is (pinning == "on")


@pytest.mark.parametrize("device", COMPOUND)
@pytest.mark.parametrize(("core_type", "taken"), [("any", "any"), ("performance", "performance")])
def test_every_family_tells_the_core_type(core: ov.Core, device: str, core_type: str, taken: str) -> None:
    assert compiled_with(core, device, config(core_type=core_type), cpu_threads=1).choices["core_type"] == taken


def test_what_the_cpu_does_not_have_is_not_taken(core: ov.Core) -> None:
    topology = cpu_topology()
    found = compiled_with(core, "CPU", config(hyper_threading="on", core_type="efficient"), cpu_threads=1)
    assert found.choices["hyper_threading"] is not None
    if not topology.shares_cores:
        assert found.choices["hyper_threading"] is False
    if not topology.core_types:
        assert found.choices["core_type"] == "any"


@bf16_cpu
def test_a_model_in_bf16_is_reported_as_such_under_accuracy(core: ov.Core) -> None:
    x = ov.op.Parameter(ov.Type.bf16, ov.Shape([1, 32]))
    weights = ov.opset13.convert(ov.opset13.constant(np.ones((32, 32), np.float32)), "bf16")
    out = ov.opset13.matmul(x, weights, False, False)
    settings = compile_properties("CPU", config(), 1)
    assert read_back(core.compile_model(ov.Model([out], [x], "bf16"), "CPU", settings)).precision == "bf16"


class Silent:
    """A compiled model that refuses every question, as a device family may."""

    def get_property(self, name: str) -> Any:
        raise RuntimeError(f"Unsupported property: {name}")


def test_what_a_device_does_not_tell_is_unknown() -> None:
    assert read_back(Silent()) == Effective(
        precision="unknown",
        execution_mode="unknown",
        performance_hint="unknown",
        streams=0,
        threads=0,
        infer_requests=0,
        execution_devices=(),
        choices={"pinning": None, "hyper_threading": None, "core_type": None},
    )
