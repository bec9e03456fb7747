"""File types through the daemon are those of magika's own package."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from inferd.demo.magika import INPUT, MODEL, OUTPUT, Classification, MagikaRules
from inferd.rpc.client import InferenceClient
from tests.system import clients, samples
from tests.system.daemon import Daemon

pytestmark = pytest.mark.system

_MAGIKA = """
import json, sys
from magika import Magika

results = Magika().identify_paths(sys.argv[1:])
print(json.dumps([[str(r.prediction.output.label), r.prediction.score] for r in results]))
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("samples")
    return [*samples.write(folder), Path(sys.executable).resolve(), folder]


@pytest.fixture(scope="module")
def rules(demo_repository: Path) -> MagikaRules:
    return MagikaRules.read(demo_repository / MODEL)


@pytest.fixture(scope="module")
def features(rules: MagikaRules, paths: list[Path]) -> npt.NDArray[np.int32]:
    """Of all samples that the model is asked about; shape [samples, 2048]."""
    seen = [rules.examine(path) for path in paths]
    return np.stack([s for s in seen if not isinstance(s, Classification)])


@pytest.fixture
def client(demo_server: Daemon) -> InferenceClient:
    with InferenceClient(demo_server.grpc) as client:
        yield client


def test_labels_and_scores_are_those_of_magikas_own_package(
    client: InferenceClient, rules: MagikaRules, paths: list[Path], figure: Callable[[str], None]
) -> None:
    ours = []
    for path in paths:
        seen = rules.examine(path)
        if not isinstance(seen, Classification):
            seen = rules.verdict(client.infer(MODEL, {INPUT: seen[None]})[OUTPUT][0])
        ours.append(seen)

    theirs = clients.run(_MAGIKA, *map(str, paths))

    assert {p.name: v.label for p, v in zip(paths, ours, strict=True)} == {
        p.name: label for p, (label, _) in zip(paths, theirs, strict=True)
    }
    assert [v.score for v in ours] == pytest.approx([score for _, score in theirs], abs=1e-3)
    worst = max(abs(v.score - score) for v, (_, score) in zip(ours, theirs, strict=True))
    kinds = len({v.label for v in ours})
    figure(f"magika: {len(paths)} files of {kinds} kinds, all labels identical, scores off by at most {worst:.1e}")


def test_the_samples_cover_many_kinds_of_file(
    rules: MagikaRules, features: npt.NDArray[np.int32], client: InferenceClient
) -> None:
    labels = {rules.verdict(scores).label for scores in client.infer(MODEL, {INPUT: features})[OUTPUT]}

    assert len(labels) >= 20, sorted(labels)


def test_all_scores_are_those_of_onnxruntime(
    client: InferenceClient, features: npt.NDArray[np.int32], demo_repository: Path
) -> None:
    session = onnxruntime.InferenceSession(demo_repository / MODEL / "1" / "model.onnx")
    [expected] = session.run([OUTPUT], {INPUT: features})

    one_by_one = np.concatenate([client.infer(MODEL, {INPUT: row[None]})[OUTPUT] for row in features])
    in_one_batch = client.infer(MODEL, {INPUT: features})[OUTPUT]

    np.testing.assert_allclose(one_by_one, expected, atol=1e-3)
    np.testing.assert_allclose(in_one_batch, expected, atol=1e-3)


def test_the_demo_command_prints_label_and_score(demo_server: Daemon, demo_repository: Path, paths: list[Path]) -> None:
    python = next(path for path in paths if path.name == "words.py")
    empty = next(path for path in paths if path.name == "empty")
    command = [sys.executable, "-m", "inferd", "demo", "classify", "--server", demo_server.grpc]
    command += ["--models", str(demo_repository), str(python), str(empty)]

    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)

    first, second = done.stdout.splitlines()
    assert first.split()[:2] == [str(python), "python"]
    assert float(first.split()[2]) > 90
    assert second.split() == [str(empty), "empty", "100.0", "%"]
