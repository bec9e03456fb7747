"""The settings that a model's file may contain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.config.model import ModelConfig, parse, read
from inferd.errors import ConfigurationError
from inferd.tensors import Dim

SIZES = st.integers(0, 2**31 - 1)


def dims(text: str) -> tuple[Dim, ...]:
    return parse(f"[shapes]\nx = [{text}]", "m/model.toml").shapes["x"]


def test_an_empty_file_means_the_defaults():
    assert parse("", "m/model.toml") == ModelConfig()


def test_a_full_file_is_read_table_by_table():
    config = parse(
        """
        devices = ["CPU", "GPU.1", "AUTO:GPU,CPU", "BATCH:GPU(4)"]
        [versions]
        policy = "listed"
        listed = [3, 1]
        [execution]
        mode = "performance"
        streams = 4
        [queue]
        default_timeout = 1
        [shapes]
        image = ["1..8", 3, "?", -1]
        [preprocessing.image]
        mean = [123.7, 116, 103.5]
        [warmup.shapes]
        image = [1, 3, 224, 224]
        [properties]
        CPU_DENORMALS_OPTIMIZATION = true
        KV_CACHE_PRECISION = "u8"
        """,
        "m/model.toml",
    )
    assert config.devices == ("CPU", "GPU.1", "AUTO:GPU,CPU", "BATCH:GPU(4)")
    assert config.versions.listed == (3, 1)
    assert (config.execution.mode, config.execution.streams) == ("performance", 4)
    assert config.queue.default_timeout == 1.0
    assert config.shapes == {"image": (Dim(1, 8), Dim(3, 3), Dim(0, None), Dim(0, None))}
    assert config.preprocessing["image"].mean == (123.7, 116, 103.5)
    assert config.warmup.shapes == {"image": (1, 3, 224, 224)}
    assert config.properties == {"CPU_DENORMALS_OPTIMIZATION": True, "KV_CACHE_PRECISION": "u8"}


# -- dimensions -------------------------------------------------------------------


@given(SIZES)
def test_a_number_is_a_fixed_size(n):
    assert dims(str(n)) == (Dim(n, n),)


@given(SIZES, SIZES)
def test_a_range_is_accepted_only_with_its_ends_in_order(lo, hi):
    if lo <= hi:
        assert dims(f'"{lo}..{hi}"') == (Dim(lo, hi),)
    else:
        with pytest.raises(ConfigurationError):
            dims(f'"{lo}..{hi}"')


@given(SIZES)
def test_a_range_may_be_open_at_the_top(lo):
    assert dims(f'"{lo}.."') == (Dim(lo, None),)


@given(st.builds(Dim, SIZES, st.none()) | st.tuples(SIZES, SIZES).map(sorted).map(lambda b: Dim(*b)))
def test_a_dimension_reads_back_as_messages_write_it(dim):
    assert dims(str(dim) if dim.static else f'"{dim}"') == (dim,)


@pytest.mark.parametrize("text", ['"?"', "-1"])
def test_any_size_has_two_spellings(text):
    assert dims(text) == (Dim(0, None),)


@given(st.text())
def test_no_other_text_is_a_dimension(text):
    try:
        (dim,) = ModelConfig.model_validate({"shapes": {"x": [text]}}).shapes["x"]
    except ValueError:
        return
    lo, _, hi = text.partition("..")
    assert text == "?" or (dim.lo, dim.hi) == (int(lo), int(hi) if hi else None)


@pytest.mark.parametrize(
    "text",
    [
        *('""', '".."', '"..8"', '"8"', '"1..x"', '"1...2"', '"-1..2"', '"1..2\\n"', '"١..٢"'),
        *('"1..2147483648"', '"9999999999.."', "2147483648", "-2", "-1.0", "1.0", "true", "[1]"),
    ],
)
def test_any_other_value_is_not_a_dimension(text):
    with pytest.raises(ConfigurationError) as raised:
        dims(f"1, {text}")
    assert raised.value.key == "shapes.x[1]"
    assert raised.value.allowed == 'a size, "?", "LO..HI" with LO <= HI, or "LO.."'


# -- values that are refused ------------------------------------------------------


@pytest.mark.parametrize("value", ['"4"', "true", "4.0"])
def test_a_count_is_a_whole_number_and_not_something_like_it(value):
    with pytest.raises(ConfigurationError) as raised:
        parse(f"[execution]\nstreams = {value}", "m/model.toml")
    assert raised.value.allowed == "a whole number of 0..1024"


@pytest.mark.parametrize(
    "device", ["cpu", "CPU.0", "XPU", "GPU.", "HETERO:", "BATCH", "AUTO:GPU,", "CPU\\n", "", " CPU"]
)
def test_a_device_openvino_could_not_parse_is_refused(device):
    with pytest.raises(ConfigurationError) as raised:
        parse(f'devices = ["CPU", "{device}"]', "m/model.toml")
    assert raised.value.key == "devices[1]"


@pytest.mark.parametrize(
    "name",
    [
        *("CACHE_DIR", "NUM_STREAMS", "INFERENCE_NUM_THREADS", "ENABLE_CPU_RESERVATION", "PERFORMANCE_HINT"),
        *("ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "SCHEDULING_CORE_TYPE"),
    ],
)
def test_a_property_with_its_own_key_or_a_harmful_one_is_refused_with_the_reason(name):
    with pytest.raises(ConfigurationError, match=f"^m/model.toml: properties.{name}: can't be set here: ."):
        parse(f"[properties]\n{name} = 1", "m/model.toml")


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("pinning", "'auto', 'on' or 'off'"),
        ("hyper_threading", "'auto', 'on' or 'off'"),
        ("core_type", "'auto', 'any', 'performance' or 'efficient'"),
        ("path", "'auto', 'async', 'sync' or 'inline'"),
    ],
)
@pytest.mark.parametrize("value", ["true", '"yes"', '"ON"', '""'])
def test_a_choice_is_one_of_the_words_for_it(key, allowed, value):
    with pytest.raises(ConfigurationError) as raised:
        parse(f"[execution]\n{key} = {value}", "m/model.toml")
    assert (raised.value.key, raised.value.allowed) == (f"execution.{key}", allowed)


# -- files ------------------------------------------------------------------------


def test_a_file_is_named_in_messages_as_the_caller_asks(tmp_path):
    file = tmp_path / "model.toml"
    file.write_bytes(b"# \xff")
    with pytest.raises(ConfigurationError) as raised:
        read(file, "m/model.toml")
    assert str(raised.value) == "m/model.toml: not UTF-8 text"
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, "m/model.toml")
    assert str(raised.value) == "m/model.toml: Is a directory"
