"""No path of this machine and no place in source code reaches clients; all other text does."""

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.disclosure import client_message, without_host_paths
from inferd.errors import InferdError, InvalidRequest, LoadFailed, ModelUnavailable, RepositoryError, UnknownModel

NAME = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
ROOT = st.sampled_from(["home", "tmp", "usr", "var", "srv", "opt", "data", "models"])
EXTENSION = st.sampled_from(["bin", "xml", "onnx", "data", "so"])


@st.composite
def paths(draw: st.DrawFn) -> PurePosixPath:
    """A path of a file: in a folder that machines have, or with an extension."""
    folders = draw(st.lists(NAME, max_size=3))
    if draw(st.booleans()):
        return PurePosixPath("/", draw(ROOT), *folders, draw(NAME))
    return PurePosixPath("/", draw(NAME), *folders, f"{draw(NAME)}.{draw(EXTENSION)}")


FRAMES = st.sampled_from(
    [
        "can't open {}",
        "can't open '{}': no such file",
        'File "{}", line 3',
        "model path:{}; it is gone",
        "[{}]",
        "({}, 5)",
        "file://{} is no model",
        "{}",
        "{}: Permission denied",
    ]
)


@given(paths(), FRAMES)
def test_a_file_is_reduced_to_its_own_name(path: PurePosixPath, frame: str) -> None:
    cleaned = without_host_paths(frame.format(path))
    assert cleaned == frame.replace("file://{}", "{}").format(path.name)
    assert without_host_paths(cleaned) == cleaned


@given(paths(), paths(), st.text(st.characters(codec="utf-8", exclude_characters="/\n"), max_size=20))
def test_two_files_are_told_apart_and_words_stay(one: PurePosixPath, other: PurePosixPath, words: str) -> None:
    client_message = without_host_paths(f"{one} and {other}")
    assert client_message == f"{one.name} and {other.name}"
    if not re.search(r"\.\w+:\d|  |^\s|\s$", words):
        assert without_host_paths(words) == words


@given(st.lists(NAME, min_size=1, max_size=4), NAME)
def test_a_models_files_are_named_relative_to_it(folders: list[str], name: str) -> None:
    root = PurePosixPath("/srv/my models, old")
    model = root.joinpath(*folders, "model.xml")
    assert without_host_paths(f"bad {model}", model) == "bad model.xml"
    assert without_host_paths(f"bad {model.parent}/sub/{name}", model) == f"bad sub/{name}"
    # One of another model, in a folder with spaces in its name.
    assert without_host_paths(f"bad {root}/other/{name}", model) == f"bad other/{name}"


@given(st.lists(NAME, max_size=3), NAME, st.sampled_from(["cpp", "hpp", "h", "cc", "py"]), st.integers(1, 9999))
def test_places_in_source_code_are_removed(folders: list[str], name: str, extension: str, line: int) -> None:
    place = f"{'/'.join([*folders, name])}.{extension}:{line}"
    for text in (f"Exception from {place}: too large", f"failed at {place}", f"/{place} too large"):
        assert without_host_paths(text) in ("too large", "Exception from too large", "failed", ": too large")


@pytest.mark.parametrize(
    "text",
    [
        "operation '/encoder/layer.0/attention/Add' is not supported",
        "input /conv1/Conv_output_0 must be FP32",
        "12 requests/s and/or 3 rows",
        "see https://docs.openvino.ai/2026/page.html",
        "shape [1,3]/[2,3]",
        "a / b",
        "m/model.toml: devices: got 'x'",
        "/",
        "",
    ],
)
def test_text_that_is_not_a_path_stays(text: str) -> None:
    assert without_host_paths(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ('Could not open "/home/a b/models/m/1/model.bin"', 'Could not open "model.bin"'),
        ("~/models/x.onnx and ~me/y.onnx", "x.onnx and y.onnx"),
        ("[Errno 13] Permission denied: '/srv/models/secret'", "[Errno 13] Permission denied: 'secret'"),
        (
            "Exception from src/inference/src/cpp/core.cpp:97:\nCheck 'x' failed at src/frontends/onnx/a.hpp:12:",
            "\nCheck 'x' failed",
        ),
        ("/usr/lib/python3.11/site-packages/openvino/libopenvino.so.2641: undefined", "libopenvino.so.2641: undefined"),
    ],
)
def test_what_they_say(text: str, cleaned: str) -> None:
    assert without_host_paths(text) == cleaned.strip()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RepositoryError("/srv/models", "can't be read"), "models: can't be read"),
        (LoadFailed("m", 1, "no /srv/m/w.bin"), "model 'm' version 1 failed to load: no w.bin"),
        (ModelUnavailable("m", "failed", "lost /dev/dri/card0"), "model 'm' is failed: lost card0"),
        # The client reads its own text unchanged.
        (UnknownModel("/etc/passwd"), "unknown model '/etc/passwd'"),
        (InvalidRequest("m", "no input '/tmp/x'"), "model 'm': no input '/tmp/x'"),
    ],
)
def test_errors_with_text_from_other_sources_are_told_without_paths(error: InferdError, sentence: str) -> None:
    assert client_message(error) == sentence
