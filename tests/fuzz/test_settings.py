"""Settings files that no operator would write: each raises a ConfigurationError of one sentence and nothing else."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferd.config import daemon, model
from inferd.errors import ConfigurationError
from tests.effort import examples
from tests.fuzz.mutation import mutated

SOME = settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])

MODEL = """
devices = ["CPU", "AUTO:GPU,CPU"]
[versions]
policy = "listed"
listed = [1, 2]
[objective]
latency_slo = 0.025
percentile = 99.0
[execution]
streams = 2
precision = "f32"
[batching]
max_size = 8
preferred_sizes = [2, 4, 8]
[queue]
default_timeout = 1.5
[shapes]
x = [1, "?", "2..4", "3.."]
[sequences.state.h]
output = "hn"
[preprocessing.image]
mean = [1.0, 2.0, 3.0]
[warmup.shapes]
x = [1, 2]
[properties]
KEY = "value"
"""
DAEMON = """
model_repository = "models"
grpc_bind = "[::1]:8001"
tuning = "online"
queue_max_bytes = 1000000
trace_endpoint = "http://127.0.0.1:4317"
drain_timeout = 1.5
repository_control = true
"""
WORDS = st.sampled_from([w for text in (MODEL, DAEMON) for w in text.replace("\n", " \n ").split(" ")])
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def model_settings(text: str) -> None:
    try:
        model.parse(text, "m/model.toml")
    except ConfigurationError as error:
        check(error, "m/model.toml: ")


def check(error: ConfigurationError, start: str = "") -> None:
    """One line, which names its source."""
    said = str(error)
    assert said.isprintable(), repr(said)
    assert said.startswith(start)


def daemon_settings(data: bytes, file: Path) -> None:
    file.write_bytes(data)
    try:
        daemon.load(file)
    except ConfigurationError as error:
        check(error)


@given(text=st.text(max_size=200) | st.lists(WORDS, max_size=60).map(" ".join))
@SOME
def test_any_text_is_a_models_settings_or_one_sentence(text: str) -> None:
    model_settings(text)


@given(data=st.binary(max_size=200) | st.lists(WORDS, max_size=60).map(" ".join).map(str.encode))
@SOME
def test_any_file_is_the_daemons_settings_or_one_sentence(data: bytes, tmp_path: Path) -> None:
    daemon_settings(data, tmp_path / "inferd.toml")


def test_mutations_of_good_settings_are_settings_or_one_sentence(tmp_path: Path) -> None:
    chance, corpus = Random(1), [MODEL.encode(), DAEMON.encode()]
    for _ in range(3000):
        data = mutated(chance, corpus)
        model_settings(data.decode(errors="replace"))
    for _ in range(500):
        daemon_settings(mutated(chance, corpus), tmp_path / "inferd.toml")


@given(key=st.sampled_from(sorted(model.ModelConfig.model_fields)), value=VALUES)
@SOME
def test_any_value_of_a_models_setting_is_taken_or_refused_in_one_sentence(key: str, value: object) -> None:
    try:
        model._validated({key: value}, "m/model.toml")
    except ConfigurationError as error:
        check(error, "m/model.toml: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("x = " + "[" * 500 + "]" * 500, ""),
        ("x = " + '{"a"=' * 100_000, "nested too deeply"),
        ("x = " + "9" * 5000, "a number is too long"),
        ("x.".join("a" for _ in range(20_000)) + " = 1", "line 1 has more than 500 dots"),
        ("\n[" + ".".join("a" for _ in range(20_000)) + "]", "line 2 has more than 500 dots"),
        (".".join("a" for _ in range(400)) + " = 1", ""),
        ("x = 0x" + "f" * 5000, ""),
        ("x = 1e999999999", ""),
        ("x = 9999-99-99", ""),
        ('"\\u0000" = 1', ""),
        ('"a\\nb" = 1', ""),
        ("[objective]\nlatency_slo = nan", ""),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) and value.isprintable() else "",
)
def test_settings_made_to_break_their_reader_are_one_sentence(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        model.parse(text, "m/model.toml")
    assert problem in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2000
