"""Which bytes of a file the model magika reads, and what its scores mean.

The model takes the first and the last bytes of a file as integers and scores 214 labels.
Which bytes those are, and how high a score must be, is published with the model as
``config.min.json``; the results agree with the magika package's own, which a test checks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from inferd.errors import RepositoryError

MODEL = "magika"
INPUT = "bytes"
OUTPUT = "target_label"

Features = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Classification:
    """The type of a file: a label such as ``markdown`` and the model's confidence, 0..1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class MagikaRules:
    """The facts published with the model.

    ``labels`` are in the order of the model's scores. A label whose score is below its
    entry in ``thresholds``, or below ``threshold`` without an entry, is too uncertain to show.
    """

    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    threshold: float
    renamed: Mapping[str, str]
    textual: frozenset[str]
    first_bytes: int
    last_bytes: int
    block_size: int
    padding: int
    least_bytes: int

    @classmethod
    def read(cls, folder: Path) -> "MagikaRules":
        """The rules in ``folder``; raises RepositoryError when they can't be read."""
        try:
            config = json.loads((folder / "config.min.json").read_bytes())
            kinds = json.loads((folder / "content_types_kb.min.json").read_bytes())
        except OSError as error:
            raise RepositoryError(str(error.filename), f"{error.strerror}; `inferd demo fetch` fetches it") from None
        return cls(
            labels=tuple(config["target_labels_space"]),
            thresholds=config["thresholds"],
            threshold=config["medium_confidence_threshold"],
            renamed=config["overwrite_map"],
            textual=frozenset(label for label, kind in kinds.items() if kind["is_text"]),
            first_bytes=config["beg_size"],
            last_bytes=config["end_size"],
            block_size=config["block_size"],
            padding=config["padding_token"],
            least_bytes=config["min_file_size_for_dl"],
        )

    def examine(self, path: Path) -> Classification | Features:
        """The type of ``path`` if that takes no model, otherwise the input for the model. Raises OSError."""
        if path.is_dir():
            return Classification("directory", 1.0)
        if path.exists() and not path.is_file():
            return Classification("unknown", 1.0)
        with path.open("rb") as content:
            return self.examine_content(content)

    def examine_content(self, content: BinaryIO) -> Classification | Features:
        """As :meth:`examine`; features have the shape [first_bytes + last_bytes].

        A block is read at each end. The start of the first without leading whitespace
        fills the front, the end of the last without trailing whitespace the back, and
        padding stands between them.
        """
        size = content.seek(0, SEEK_END)
        if size == 0:
            return Classification("empty", 1.0)
        content.seek(0)
        head = content.read(self.block_size)
        content.seek(max(0, size - self.block_size))
        tail = content.read(self.block_size)

        front = head.lstrip()[: self.first_bytes]
        if len(front) < self.least_bytes:
            return Classification("txt" if _is_utf8(head) else "unknown", 1.0)
        back = tail.rstrip()[-self.last_bytes :]
        features = np.full(self.first_bytes + self.last_bytes, self.padding, np.int32)
        features[: len(front)] = np.frombuffer(front, np.uint8)
        features[len(features) - len(back) :] = np.frombuffer(back, np.uint8)
        return features

    def verdict(self, scores: npt.NDArray[np.float32]) -> Classification:
        """The label to show for the model's ``scores``, shape [214]: a generic one when the model is not sure."""
        best = int(scores.argmax())
        guess, score = self.labels[best], float(scores[best])
        label = self.renamed.get(guess, guess)
        if score < self.thresholds.get(guess, self.threshold):
            label = "txt" if label in self.textual else "unknown"
        return Classification(label, score)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
