import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.demo.magika import Classification, MagikaRules
from inferd.errors import RepositoryError

# Small enough that a few dozen bytes reach every border.
RULES = MagikaRules(
    labels=("python", "markdown", "png", "noise"),
    thresholds={"markdown": 0.75},
    threshold=0.5,
    renamed={"noise": "unknown"},
    textual=frozenset({"python", "markdown", "txt"}),
    first_bytes=8,
    last_bytes=8,
    block_size=16,
    padding=256,
    least_bytes=4,
)


def examined(content: bytes) -> "Classification | list[int]":
    seen = RULES.examine_content(io.BytesIO(content))
    return seen if isinstance(seen, Classification) else seen.tolist()


def test_a_file_fills_the_front_from_its_start_and_the_back_up_to_its_end() -> None:
    assert examined(b"abcdef") == [*b"abcdef", 256, 256, 256, 256, *b"abcdef"]


def test_only_leading_and_trailing_whitespace_is_skipped() -> None:
    assert examined(b" \n a bc \t") == [*b"a bc \t", 256, 256, 256, *b" \n a bc"]


def test_only_a_block_at_each_end_of_a_long_file_is_read() -> None:
    content = b" " * 10 + b"abcdefghijkl" + b"x" * 50 + b"mnop" + b"\n" * 12

    assert examined(content) == [*b"abcdef", 256, 256, 256, 256, 256, 256, *b"mnop"]


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"", "empty"),
        (b"abc", "txt"),
        (b"\xff\xfe", "unknown"),
        (b" \n" * 7, "txt"),
        (b" " * 40 + b"abcdefgh", "txt"),
        (b" " * 15 + "é".encode() * 8, "unknown"),  # the block ends within a character
    ],
)
def test_too_short_a_file_needs_no_model(content: bytes, label: str) -> None:
    assert examined(content) == Classification(label, 1.0)


@given(st.binary(max_size=60))
def test_features_are_bytes_of_the_file_or_padding(content: bytes) -> None:
    seen = examined(content)

    if isinstance(seen, Classification):
        assert len(content[:16].lstrip()) < 4
    else:
        front, back = bytes(v for v in seen[:8] if v != 256), bytes(v for v in seen[8:] if v != 256)
        assert len(seen) == 16
        assert content[:16].lstrip().startswith(front)
        assert content[-16:].rstrip().endswith(back)


@pytest.mark.parametrize(
    ("scores", "label"),
    [
        ([0.6, 0.2, 0.1, 0.1], "python"),
        ([0.1, 0.7, 0.1, 0.1], "txt"),  # below markdown's own threshold
        ([0.1, 0.8, 0.05, 0.05], "markdown"),
        ([0.2, 0.2, 0.4, 0.2], "unknown"),
        ([0.0, 0.0, 0.1, 0.9], "unknown"),
    ],
)
def test_a_label_is_shown_when_its_score_reaches_the_threshold(scores: list[float], label: str) -> None:
    verdict = RULES.verdict(np.array(scores, np.float32))

    assert verdict.label == label
    assert verdict.score == pytest.approx(max(scores))


def test_a_folder_and_a_device_need_no_model(tmp_path: Path) -> None:
    assert RULES.examine(tmp_path) == Classification("directory", 1.0)
    assert RULES.examine(Path("/dev/null")) == Classification("unknown", 1.0)


def test_missing_rules_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"config\.min\.json: No such file.*inferd demo fetch"):
        MagikaRules.read(tmp_path)


def test_the_published_rules_name_every_label_the_model_scores(demo_repository: Path) -> None:
    rules = MagikaRules.read(demo_repository / "magika")

    assert len(rules.labels) == 214
    assert {"python", "markdown", "txt"} <= rules.textual
    assert rules.thresholds["markdown"] == 0.75
