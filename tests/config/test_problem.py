"""Every kind of mistake in a model's file, and its one sentence."""

import pytest

from inferd.config.model import parse
from inferd.errors import ConfigurationError

DEVICES = "CPU, GPU, GPU.<n>, NPU, AUTO[:list], HETERO:list, MULTI:list or BATCH:device[(n)]"
DIMENSION = 'a size, "?", "LO..HI" with LO <= HI, or "LO.."'

SENTENCES = [
    # The wrong kind of value.
    ("batching = 3", "batching: got 3; allowed: a table ([batching])"),
    ("[[batching]]", "batching: got [{}]; allowed: a table ([batching])"),
    ("shapes = 3", "shapes: got 3; allowed: a table ([shapes])"),
    ("[preprocessing]\nx = 3", "preprocessing.x: got 3; allowed: a table ([preprocessing.x])"),
    ('devices = "CPU"', "devices: got 'CPU'; allowed: a non-empty list of strings, such as [\"CPU\"]"),
    ("devices = []", 'devices: got []; allowed: a non-empty list of strings, such as ["CPU"]'),
    ("devices = [3]", f"devices[0]: got 3; allowed: {DEVICES}"),
    ("[shapes]\nx = 3", 'shapes.x: got 3; allowed: a list of dimensions, such as [1, 3, "?", "1..8"]'),
    ("[execution]\nmode = 1", "execution.mode: got 1; allowed: 'accuracy' or 'performance'"),
    ("[execution]\nstreams = true", "execution.streams: got true; allowed: a whole number of 0..1024"),
    ("[warmup]\nruns = 1979-05-27", "warmup.runs: got 1979-05-27; allowed: a whole number of 0..1000"),
    ("[properties]\nX = [1]", "properties.X: got [1]; allowed: a string, a number, true or false"),
    ("[warmup.shapes]\nx = 1", "warmup.shapes.x: got 1; allowed: a list of whole numbers of 0..2147483647"),
    # The right kind, but not allowed.
    ('devices = ["XPU"]', f"devices[0]: got 'XPU'; allowed: {DEVICES}"),
    ('devices = ["CPU", "CPU"]', "devices: CPU is listed 2 times; list each device once"),
    ("[execution]\nprecision = 'f8'", "execution.precision: got 'f8'; allowed: 'auto', 'f32', 'bf16' or 'f16'"),
    ("[execution]\nstreams = -1", "execution.streams: got -1; allowed: a whole number of 0..1024"),
    ("[queue]\nmax_bytes = 0", "queue.max_bytes: got 0; allowed: a size of 1B or more, such as 64MiB"),
    (
        "[queue]\ndefault_timeout = nan",
        "queue.default_timeout: got nan; allowed: a duration above 0 and up to 24h, such as 20ms or 1.5s",
    ),
    ("[versions]\ncount = 0", "versions.count: got 0; allowed: a whole number of 1..1000"),
    ("[versions]\npolicy = 'listed'", "versions: policy is 'listed' but listed names no version"),
    ("[versions]\nlisted = [1]", "versions: listed names versions but policy is 'latest'; set policy = \"listed\""),
    ("[versions]\nlisted = [0]", "versions.listed[0]: got 0; allowed: a whole number of 1 or more"),
    ("[preprocessing.x]\nmean = [1, 2]", "preprocessing.x.mean: got [1, 2]; allowed: a list of 1 or 3 numbers"),
    ("[preprocessing.x]\nmean = [inf]", "preprocessing.x.mean[0]: got inf; allowed: a number"),
    ("[preprocessing.x]\nscale = [1, 0, 1]", "preprocessing.x.scale[1]: got 0; allowed: a number above 0"),
    (
        "[properties]\nCACHE_DIR = 'x'",
        "properties.CACHE_DIR: can't be set here: inferd keeps its own checked cache; see the daemon's cache_dir",
    ),
    # The key.
    (
        "[batching]\nmax = 1",
        "batching.max: unknown key (did you mean max_size?); allowed: max_size, enabled, max_batch_rows, max_delay, "
        "preferred_sizes",
    ),
    ("[warmup.shape]", "warmup.shape: unknown key (did you mean shapes?); allowed: runs, shapes"),
    (
        "[preprocessing.x]\nmeans = 1",
        "preprocessing.x.means: unknown key (did you mean mean?); allowed: layout, color_from, color_to, resize, mean, "
        "scale",
    ),
    (
        "[queue]\nstreams = 1",
        "queue.streams: unknown key (did you mean execution.streams?); allowed: max_length, max_bytes, default_timeout",
    ),
    ("[queue]\nzzz = 1", "queue.zzz: unknown key; allowed: max_length, max_bytes, default_timeout"),
    ('[shapes]\n"a.b" = ["q"]', f"shapes.\"a.b\"[0]: got 'q'; allowed: {DIMENSION}"),
    ('[shapes]\n"a\\nb" = ["q"]', f"shapes.\"a b\"[0]: got 'q'; allowed: {DIMENSION}"),
    # The file as a whole.
    ("devices = [", "not valid TOML: Invalid value (at end of document)"),
]


@pytest.mark.parametrize(("text", "sentence"), SENTENCES, ids=[t for t, _ in SENTENCES])
def test_a_mistake_gives_a_sentence_naming_file_key_and_what_is_allowed(text, sentence):
    with pytest.raises(ConfigurationError) as raised:
        parse(text, "m/model.toml")
    assert str(raised.value) == f"m/model.toml: {sentence}"


def test_an_endless_value_is_cut_and_stays_on_one_line():
    with pytest.raises(ConfigurationError) as raised:
        parse('[execution]\nmode = """' + "x\n" * 1000 + '"""', "m/model.toml")
    assert len(str(raised.value)) < 200
    assert str(raised.value).isprintable()


def test_all_mistakes_of_a_file_are_found_at_once():
    text = """
    devices = ["CPU", "XPU"]
    streams = 3
    [objective]
    latency_slo = -1
    [batching]
    max_size = "many"
    """
    with pytest.raises(ConfigurationError) as raised:
        parse(text, "m/model.toml")
    first, *others = (str(problem) for problem in raised.value.every)
    assert [one.split(":")[1].strip() for one in (first, *others)] == [
        "devices[1]",
        "objective.latency_slo",
        "batching.max_size",
        "streams",
    ]
    assert str(raised.value) == f"{first} (and 3 more mistakes; inferd check lists them)"


def test_a_consequence_of_another_mistake_is_not_reported():
    with pytest.raises(ConfigurationError) as raised:
        parse('devices = ["XPU"]', "m/model.toml")
    assert len(raised.value.every) == 1
