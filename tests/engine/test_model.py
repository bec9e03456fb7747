"""From a model file to pools that run it: what is served, and what is refused with which message."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from inferd.engine.cache import BlobCache
from inferd.engine.model import LoadedModel, LoadedPool
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed
from inferd.errors import ConfigurationError, DeviceAbsent, LoadFailed
from inferd.repository.find import FORMATS
from inferd.tensors import Dim, DType, Signature, Tensor, TensorSpec
from tests.engine import foreign_models, models
from tests.engine.models import numbers, op, parameter, tensor

TYPES = {
    "boolean": DType.BOOL,
    "u8": DType.UINT8,
    "u16": DType.UINT16,
    "u32": DType.UINT32,
    "u64": DType.UINT64,
    "i8": DType.INT8,
    "i16": DType.INT16,
    "i32": DType.INT32,
    "i64": DType.INT64,
    "f16": DType.FP16,
    "bf16": DType.BF16,
    "f32": DType.FP32,
    "f64": DType.FP64,
}
BATCHED = "[batching]\nmax_size = 8"


def load(network: ov.Model, folder: Path, toml: str = "") -> LoadedModel:
    return models.engine().load(models.source(models.save(network, folder), toml))


def run(entry: LoadedPool, *inputs: Tensor, outputs: tuple[int, ...] = (0,)) -> list[Tensor]:
    entry.pool.start(0, [inputs])
    while not (ended := entry.pool.sweep()):
        pass
    assert [c.failure for c in ended] == [None]
    return entry.pool.read(0, outputs)


def refusal(network: ov.Model, folder: Path, toml: str = "") -> str:
    with pytest.raises(LoadFailed) as refused:
        load(network, folder, toml)
    return str(refused.value)


# -- files of other frameworks -------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("model.pb", foreign_models.tensorflow(), ("x:0", "y:0")),
        ("model.tflite", foreign_models.tensorflow_lite(), ("x", "y")),
        ("model.pdmodel", foreign_models.paddle(), ("x", "y")),
    ],
)
def test_models_of_other_frameworks_run(file: str, content: bytes, names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    loaded = models.engine().load(models.source(tmp_path / file))
    assert (loaded.signature.inputs[0].name, loaded.signature.outputs[0].name) == names
    (answer,) = run(loaded.pools[0], tensor([[1, -2, 3, -4]]))
    assert numbers(answer).tolist() == [[1, 0, 3, 0]]


# -- element types and shapes --------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_every_element_type_of_the_protocol_passes_unchanged(name: str, tmp_path: Path) -> None:
    dtype = TYPES[name]
    loaded = load(models.identity([3], getattr(ov.Type, name)), tmp_path)
    data = bytes([1, 0, 1]) if dtype is DType.BOOL else bytes(range(3 * dtype.itemsize))
    (answer,) = run(loaded.pools[0], Tensor(dtype, (3,), data))

    assert loaded.signature.inputs == (TensorSpec("x", dtype, (Dim(3, 3),)),)
    assert loaded.signature.outputs[0].dtype is dtype
    assert (answer.dtype, answer.shape, bytes(answer.data)) == (dtype, (3,), data)  # type: ignore[arg-type]


def test_strings_pass_unchanged(tmp_path: Path) -> None:
    given = Tensor(DType.BYTES, (2, 2), [b"a", b"", b"\xff\x00\x01", "größer".encode()])
    loaded = load(models.identity([2, 2], ov.Type.string), tmp_path)
    assert run(loaded.pools[0], given) == [given]


@pytest.mark.parametrize("name", ["u4", "i4", "u1", "nf4", "f8e4m3", "f8e5m2"])
def test_an_element_type_the_protocol_can_not_carry_is_refused(name: str, tmp_path: Path) -> None:
    said = refusal(models.identity([4], getattr(ov.Type, name)), tmp_path)
    assert (
        said == f"model 'small' version 1 failed to load: 'x' has element type {name}, which the protocol can't carry"
    )


def test_a_scalar_passes(tmp_path: Path) -> None:
    loaded = load(models.identity([]), tmp_path)
    assert loaded.signature.inputs[0].dims == ()
    (answer,) = run(loaded.pools[0], tensor(2.5))
    assert (answer.shape, numbers(answer).item()) == ((), 2.5)


def test_dimensions_keep_their_bounds(tmp_path: Path) -> None:
    loaded = load(models.identity([-1, ov.Dimension(2, 5), 3]), tmp_path)
    assert loaded.signature.inputs[0].dims == (Dim(0, None), Dim(2, 5), Dim(3, 3))
    for shape in ((1, 2, 3), (7, 5, 3), (2, 4, 3)):
        values = np.random.default_rng(1).random(shape, np.float32)
        (answer,) = run(loaded.pools[0], tensor(values))
        assert np.array_equal(numbers(answer), values)


def test_shapes_in_the_settings_replace_the_model_s(tmp_path: Path) -> None:
    loaded = load(models.identity(ov.PartialShape.dynamic()), tmp_path, '[shapes]\nx = [2, "1..4", "?"]')
    assert loaded.signature.inputs[0].dims == (Dim(2, 2), Dim(1, 4), Dim(0, None))
    assert loaded.signature.outputs[0].dims == (Dim(2, 2), Dim(1, 4), Dim(0, None))


def test_a_shape_may_be_set_by_any_name_of_the_input(tmp_path: Path) -> None:
    x = parameter([-1])
    x.output(0).set_names({"x", "pixels"})
    file = models.save(models.model({"y": op.relu(x)}, [x]), tmp_path)
    for alias in ("x", "pixels"):
        signature = models.engine().inspect(models.source(file, f"[shapes]\n{alias} = [5]"))
        assert signature.inputs[0].dims == (Dim(5, 5),)
        assert {signature.inputs[0].name, *signature.inputs[0].aliases} == {"x", "pixels"}


def test_a_shape_for_an_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"small/model.toml: shapes.z: no such input; allowed: x"):
        load(models.identity(), tmp_path, "[shapes]\nz = [4]")


def test_a_shape_the_model_can_not_take_is_refused(tmp_path: Path) -> None:
    x = parameter([2, 3])
    network = models.model({"y": op.matmul(x, op.constant(np.ones((3, 2), np.float32)), False, False)}, [x])
    assert "failed to load" in refusal(network, tmp_path, "[shapes]\nx = [2, 4]")


def test_ports_without_a_name_go_by_the_same_one_each_time(tmp_path: Path) -> None:
    source = models.source(models.save(models.identity([2], name=""), tmp_path))
    first, second = (models.engine().inspect(source) for _ in range(2))
    assert first == second
    assert first.inputs[0].name
    assert first.outputs[0].name


# -- batching ------------------------------------------------------------------------


def test_a_batch_of_any_size_up_to_the_bound_needs_no_second_compile(tmp_path: Path) -> None:
    loaded = load(models.scaled(2, [1, 3]), tmp_path, BATCHED)
    (spec,) = loaded.signature.inputs
    assert loaded.signature.max_batch == 8
    assert spec.dims == (Dim(1, 8), Dim(3, 3))
    for rows in (1, 8, 3, 2, 5, 4, 6, 7):
        values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        assert spec.accepts(values.shape)
        assert np.array_equal(numbers(run(loaded.pools[0], tensor(values))[0]), 2 * values)
    assert not spec.accepts((9, 3))
    assert not spec.accepts((0, 3))


def test_batching_is_refused_where_an_output_does_not_follow(tmp_path: Path) -> None:
    x = parameter([1, 4])
    network = models.model({"sum": op.reduce_sum(x, np.array([0, 1]), True)}, [x])
    with pytest.raises(ConfigurationError, match=r"batching.max_size: output 'sum' of shape \[1,1\] does not follow"):
        load(network, tmp_path, BATCHED)


def test_batching_is_refused_where_an_input_has_no_first_dimension(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"batching.max_size: input 'x' has no dimension 1 to batch over"):
        load(models.identity([]), tmp_path, BATCHED)


# -- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no model at all", b"<?xml version='1.0'?><net>"])
@pytest.mark.parametrize("extension", FORMATS)
def test_a_broken_file_is_refused_in_one_sentence_that_tells_no_folder(
    extension: str, content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / f"model{extension}"
    file.write_bytes(content)
    with pytest.raises(LoadFailed) as refused:
        models.engine().load(models.source(file))
    said = str(refused.value)
    assert said.startswith("model 'small' version 1 failed to load: ")
    assert said.isprintable()
    assert str(tmp_path) not in said
    assert ".cpp" not in said


@pytest.mark.parametrize("extension", FORMATS)
def test_a_file_that_has_gone_is_refused_likewise(extension: str, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed) as refused:
        models.engine().load(models.source(tmp_path / f"model{extension}"))
    assert str(tmp_path) not in str(refused.value)


def test_an_absent_device_is_named_with_what_is_present(tmp_path: Path) -> None:
    with pytest.raises(DeviceAbsent, match=r"device 'GPU.7' needs GPU.7, which is absent; present: .*CPU"):
        load(models.identity(), tmp_path, 'devices = ["CPU", "GPU.7"]')


def test_a_property_that_openvino_does_not_know_is_refused(tmp_path: Path) -> None:
    assert "on CPU: " in refusal(models.identity(), tmp_path, "[properties]\nNO_SUCH_PROPERTY = 1")


@pytest.mark.parametrize(
    "toml", ["", 'devices = ["CPU", "AUTO:CPU"]'], ids=["on the only device", "after another device was ready"]
)
def test_nothing_is_left_of_a_load_that_failed(toml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Pool]] = []
    build = Pool.__init__

    def remembered(self: Pool, *args: Any, **named: Any) -> None:
        made.append(weakref.ref(self))
        build(self, *args, **named)

    monkeypatch.setattr(Pool, "__init__", remembered)
    warm_up = Pool.run_all

    def fails_on_the_last(self: Pool, inputs: Any) -> float:
        if not toml or self.device != "CPU":
            raise RunFailed("not today")
        return warm_up(self, inputs)

    monkeypatch.setattr(Pool, "run_all", fails_on_the_last)

    refusal(models.identity(), tmp_path, toml)
    gc.collect()

    assert [pool() for pool in made] == [None] * len(made)
    assert len(made) >= (2 if toml else 1)


# -- devices, precision --------------------------------------------------------------


def test_each_device_has_a_pool_of_its_own(tmp_path: Path) -> None:
    loaded = load(models.scaled(3), tmp_path, 'devices = ["CPU", "AUTO:CPU"]\n[execution]\ninfer_requests = 3')
    assert [(p.pool.device, p.pool.size) for p in loaded.pools] == [("CPU", 3), ("AUTO:CPU", 3)]
    assert all(p.times[0][1] > 0 for p in loaded.pools)
    for entry in loaded.pools:
        assert numbers(run(entry, tensor([1, 2, 3, 4]))[0]).tolist() == [3, 6, 9, 12]


def test_a_pool_is_as_large_as_the_device_asks_for_unless_it_is_set(tmp_path: Path) -> None:
    loaded = load(models.identity(), tmp_path, "[execution]\nstreams = 2")
    assert loaded.pools[0].pool.size == loaded.pools[0].effective.infer_requests == 2


@pytest.mark.parametrize(
    ("execution", "part"),
    [
        ("threads = 1\ninfer_requests = 2", 0.25),
        ("threads = 2\ninfer_requests = 2", 0.5),
        ("threads = 2\ninfer_requests = 1", 1.0),
        ("threads = 2\ninfer_requests = 2\n[sequences]\nmax_active = 8", 0.5),
    ],
)
def test_the_part_of_the_device_that_a_run_takes_up_follows_threads_and_runs_side_by_side(
    execution: str, part: float, tmp_path: Path
) -> None:
    network = models.stateful() if "sequences" in execution else models.identity()
    assert load(network, tmp_path, f"[execution]\n{execution}").pools[0].width == part


def matrix_product() -> tuple[ov.Model, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    dice = np.random.default_rng(9)
    weights, x = (dice.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    parameter_ = parameter([64, 64])
    return models.model({"y": op.matmul(parameter_, op.constant(weights), False, False)}, [parameter_]), weights, x


def test_accuracy_keeps_the_precision_of_the_model(tmp_path: Path) -> None:
    network, weights, x = matrix_product()
    loaded = load(network, tmp_path)
    assert loaded.pools[0].effective.precision == "f32"
    assert np.allclose(numbers(run(loaded.pools[0], tensor(x))[0]), x @ weights, rtol=1e-4, atol=1e-4)


def test_performance_lowers_the_precision_where_the_cpu_can(tmp_path: Path) -> None:
    # Trap 9.
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    network, weights, x = matrix_product()
    loaded = load(network, tmp_path, '[execution]\nmode = "performance"')
    assert loaded.pools[0].effective.precision == "bf16"
    answer = numbers(run(loaded.pools[0], tensor(x))[0])
    assert not np.allclose(answer, x @ weights, rtol=1e-4, atol=1e-4)
    assert np.allclose(answer, x @ weights, rtol=0.1, atol=0.5)


def test_a_precision_that_is_set_wins_over_the_mode(tmp_path: Path) -> None:
    network, _, _ = matrix_product()
    loaded = load(network, tmp_path, '[execution]\nmode = "performance"\nprecision = "f32"')
    assert loaded.pools[0].effective.precision == "f32"


# -- the path of a run ---------------------------------------------------------------


@pytest.mark.parametrize(("path", "threads"), [("auto", 0), ("async", 0), ("sync", 3)])
def test_on_the_sync_path_each_infer_request_has_a_thread_until_it_is_closed(
    path: str, threads: int, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    loaded = load(models.scaled(3), tmp_path, f'[execution]\npath = "{path}"\ninfer_requests = 3')
    assert len(set(threading.enumerate()) - before) == threads
    (answer,) = run(loaded.pools[0], tensor([1, 2, 3, 4]))
    assert numbers(answer).tolist() == [3, 6, 9, 12]
    loaded.close()
    assert set(threading.enumerate()) == before


def test_the_sync_path_keeps_a_model_s_own_state_apart(tmp_path: Path) -> None:
    loaded = load(models.stateful(), tmp_path, '[sequences]\nmax_active = 3\n[execution]\npath = "sync"')
    pool = loaded.pools[0].pool
    for frame in range(3):
        for slot in range(3):
            pool.start(slot, [[tensor([[slot, 1]])]], fresh=frame == 0)
        while pool.in_flight:
            assert all(completion.failure is None for completion in pool.sweep())
        # The model starts from its first input, and then adds each.
        answers = [numbers(pool.read(slot, [0])[0]).tolist() for slot in range(3)]
        assert answers == [[[slot * (frame + 2), frame + 2]] for slot in range(3)]
    loaded.close()


# -- the cache -----------------------------------------------------------------------


def test_a_second_load_imports_the_blob_and_gives_the_same(tmp_path: Path) -> None:
    network, _, x = matrix_product()
    source = models.source(models.save(network, tmp_path / "model"))
    first, second = (models.engine(cache=tmp_path / "cache").load(source) for _ in range(2))

    assert [loaded.pools[0].from_cache for loaded in (first, second)] == [False, True]
    assert first.signature == second.signature
    answers = [bytes(run(loaded.pools[0], tensor(x))[0].data) for loaded in (first, second)]  # type: ignore[arg-type]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("execution", "taken"),
    [
        ('pinning = "on"', ("pinning", True)),
        ('pinning = "off"', ("pinning", False)),
        ('hyper_threading = "off"', ("hyper_threading", False)),
        ('core_type = "performance"', ("core_type", "performance")),
        ('core_type = "any"', ("core_type", "any")),
        ("threads = 1", ("threads", 1)),
    ],
)
def test_one_blob_serves_every_way_to_place_threads(execution: str, taken: tuple[str, Any], tmp_path: Path) -> None:
    # Trap 27: whichever way the blob was compiled.
    for first, second in (("", execution), (execution, "")):
        folder = tmp_path / f"{bool(first)}"
        file = models.save(models.identity(), folder / "model")
        engine = models.engine(cache=folder / "cache")
        settings = [f'[execution]\npath = "async"\n{each}' for each in (first, second)]
        loads = [engine.load(models.source(file, each)).pools[0] for each in settings]
        assert [entry.from_cache for entry in loads] == [False, True]
        asked = loads[1] if second else loads[0]
        assert {"threads": asked.effective.threads, **asked.effective.choices}[taken[0]] == taken[1]
        left_open = loads[0] if second else loads[1]
        plain = models.engine().load(models.source(file, '[execution]\npath = "async"')).pools[0]
        assert left_open.effective == plain.effective


def test_one_blob_serves_every_number_of_streams(tmp_path: Path) -> None:
    file = models.save(models.identity(), tmp_path / "model")
    engine = models.engine(cache=tmp_path / "cache")
    engine.load(models.source(file, "[execution]\nstreams = 1"))
    again = engine.load(models.source(file, "[execution]\nstreams = 2"))
    assert (again.pools[0].from_cache, again.pools[0].effective.streams) == (True, 2)


@pytest.mark.parametrize(
    "toml",
    [
        "[batching]\nmax_size = 8\nenabled = false",
        "[batching]\nmax_size = 8\nmax_delay = 0.5",
        "[batching]\nmax_size = 8\npreferred_sizes = [4]",
        "[batching]\nmax_size = 8\n[objective]\nlatency_slo = 0.1\npercentile = 90.0",
        "[batching]\nmax_size = 8\n[share]\nweight = 2.0",
        "[batching]\nmax_size = 8\n[sequences]\nmax_active = 3",
    ],
)
def test_settings_of_the_scheduler_share_one_blob(toml: str, tmp_path: Path) -> None:
    file = models.save(models.identity([1, 4]), tmp_path / "model")
    engine = models.engine(cache=tmp_path / "cache")
    engine.load(models.source(file, BATCHED))
    assert engine.load(models.source(file, toml)).pools[0].from_cache


def test_batches_along_different_axes_have_a_blob_each(tmp_path: Path) -> None:
    file = models.save(models.identity([4, 4]), tmp_path / "model")
    engine = models.engine(cache=tmp_path / "cache")
    for axis, dims in ((0, (Dim(1, 8), Dim(4, 4))), (1, (Dim(4, 4), Dim(1, 8)))):
        toml = f"{BATCHED}\n[sequences.state.x]\noutput = 'x'\nbatch_axis = {axis}"
        loaded = engine.load(models.source(file, toml))
        assert not loaded.pools[0].from_cache
        assert loaded.signature.inputs[0].dims == dims


@pytest.mark.parametrize(
    "toml", [BATCHED, "[batching]\nmax_size = 4", "[shapes]\nx = [2, 4]", '[execution]\nmode = "performance"']
)
def test_settings_that_decide_the_compiled_code_have_a_blob_of_their_own(toml: str, tmp_path: Path) -> None:
    file = models.save(models.identity([1, 4]), tmp_path / "model")
    engine = models.engine(cache=tmp_path / "cache")
    engine.load(models.source(file))
    assert not engine.load(models.source(file, toml)).pools[0].from_cache


def test_a_model_whose_weights_changed_is_compiled_again(tmp_path: Path) -> None:
    engine = models.engine(cache=tmp_path / "cache")
    engine.load(models.source(models.save(models.scaled(2), tmp_path / "model")))
    changed = engine.load(models.source(models.save(models.scaled(3), tmp_path / "model")))
    assert not changed.pools[0].from_cache
    assert numbers(run(changed.pools[0], tensor([1, 1, 1, 1]))[0]).tolist() == [3, 3, 3, 3]


def test_a_damaged_blob_is_never_loaded(tmp_path: Path) -> None:
    # Trap 13: OpenVINO itself takes flipped bytes without a word.
    network, weights, x = matrix_product()
    source = models.source(models.save(network, tmp_path / "model"))
    models.engine(cache=tmp_path / "cache").load(source)
    (blob,) = (tmp_path / "cache").glob("*.blob")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.write_bytes(content)

    with capture_logs() as logged:
        loaded = models.engine(cache=tmp_path / "cache").load(source)
    assert [entry["event"] for entry in logged] == ["damaged cached blob discarded"]
    assert not loaded.pools[0].from_cache
    assert np.allclose(numbers(run(loaded.pools[0], tensor(x))[0]), x @ weights, rtol=1e-4, atol=1e-4)


def test_a_blob_that_openvino_refuses_is_compiled_again(tmp_path: Path) -> None:
    source = models.source(models.save(models.identity(), tmp_path / "model"))
    engine = models.engine(cache=tmp_path / "cache")
    engine.load(source)
    (blob,) = (tmp_path / "cache").glob("*.blob")
    BlobCache(tmp_path / "cache", 1 << 30).store(blob.stem, b"intact by its checksum, and no blob")

    with capture_logs() as logged:
        loaded = engine.load(source)
    assert [entry["event"] for entry in logged] == ["cached blob refused"]
    assert not loaded.pools[0].from_cache
    assert engine.load(source).pools[0].from_cache


def test_two_outputs_of_one_tensor_go_by_names_of_their_own(tmp_path: Path) -> None:
    x = models.parameter([2])
    doubled = models.op.add(x, x)
    doubled.output(0).set_names({"y"})
    network = ov.Model([models.op.result(doubled), models.op.result(doubled)], [x], "twins")
    signature = models.engine().inspect(models.source(models.save(network, tmp_path)))
    assert [spec.name for spec in signature.outputs] == ["y", "output_1"]


# -- inspecting ----------------------------------------------------------------------


def test_inspecting_tells_what_would_be_served_and_compiles_nothing(tmp_path: Path) -> None:
    source = models.source(models.save(models.identity([1, 4]), tmp_path / "model"), BATCHED)
    signature = models.engine(cache=tmp_path / "cache").inspect(source)
    spec = TensorSpec("x", DType.FP32, (Dim(1, 8), Dim(4, 4)))
    assert signature == Signature((spec,), (spec,), 8)
    assert not (tmp_path / "cache").exists()


def test_inspecting_refuses_what_loading_would(tmp_path: Path) -> None:
    file = models.save(models.stateful(), tmp_path)
    with pytest.raises(ConfigurationError):
        models.engine().inspect(models.source(file, 'devices = ["CPU", "AUTO:CPU"]'))
    with pytest.raises(DeviceAbsent):
        models.engine().inspect(models.source(file, 'devices = ["NPU"]'))
