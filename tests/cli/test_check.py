"""The output of ``inferd check``, on real trees of files."""

import io
from pathlib import Path

import pytest

from inferd.cli.check import TryOut, check
from inferd.config.daemon import Settings
from inferd.config.model import parse
from inferd.config.summary import summary
from inferd.errors import LoadFailed, RepositoryError
from inferd.repository.find import ModelEntry, VersionFile
from inferd.tensors import Dim, DType, Signature, TensorSpec


def checked(root: Path, try_out: TryOut | None = None) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = check(Settings(model_repository=root), out, try_out)
    return code, out.getvalue().splitlines()


@pytest.fixture
def repository(tmp_path):
    for file in ("magika/1/model.onnx", "magika/2/model.onnx", "resnet.xml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "magika/model.toml").write_text('devices = ["CPU", "GPU.1"]\n[versions]\npolicy = "all"')
    return tmp_path


def classifier(entry: ModelEntry, version: VersionFile) -> Signature:
    """Stands in for OpenVINO: reads any model but version 13 as a classifier of byte strings."""
    if version.version == 13:
        raise LoadFailed(entry.name, version.version, "not a model\nat all")
    return Signature(
        inputs=(TensorSpec("bytes", DType.INT32, (Dim(1, 8), Dim(2048, 2048))),),
        outputs=(TensorSpec("label", DType.FP32, (Dim(1, 8), Dim(0, None))), TensorSpec("raw", DType.BYTES, None)),
        remarks=("input 'bytes' holds\n0..9; others are refused",),
    )


def test_each_sound_model_has_a_line_with_versions_and_devices(repository):
    assert checked(repository) == (
        0,
        [
            "ok      magika: versions 1, 2 on CPU, GPU.1",
            "        no latency objective, goal throughput",
            "        given: devices = [CPU, GPU.1], versions.policy = all",
            "ok      resnet: version 1 on CPU",
            "        no latency objective, goal throughput",
            "2 models, 0 broken",
        ],
    )


def test_inspected_models_show_inputs_and_outputs(repository):
    (repository / "magika/model.toml").unlink()
    (repository / "resnet.xml").unlink()
    assert checked(repository, classifier) == (
        0,
        [
            "ok      magika: version 2 on CPU",
            "        no latency objective, goal throughput",
            "        version 2 input: bytes INT32 [1..8,2048]",
            "        version 2 output: label FP32 [1..8,?]",
            "        version 2 output: raw BYTES [any rank]",
            "        version 2 numbers: input 'bytes' holds 0..9; others are refused",
            "1 model, 0 broken",
        ],
    )


def test_a_broken_model_has_a_line_with_its_problem_and_the_exit_code_says_so(repository):
    (repository / "magika/model.toml").write_text("streams = 3")
    code, lines = checked(repository)
    assert code == 1
    assert lines == [
        "broken  magika: magika/model.toml: streams: unknown key (did you mean execution.streams?); allowed: devices, "
        "versions, objective, execution, batching, queue, sequences, share, shapes, preprocessing, numbers, warmup, "
        "rollout, properties",
        "ok      resnet: version 1 on CPU",
        "        no latency objective, goal throughput",
        "2 models, 1 broken",
    ]


def test_each_mistake_of_a_file_has_a_line(repository):
    (repository / "magika/model.toml").write_text(
        'streams = 3\ndevices = ["XPU"]\n[objective]\nlatency_slo = -1\n[queue]\nmax_length = "x"\n'
    )
    code, lines = checked(repository)
    assert code == 1
    keys = ["devices[0]", "objective.latency_slo", "queue.max_length", "streams"]
    assert [line.split("magika/model.toml: ")[1].split(":")[0] for line in lines[:4]] == keys
    assert lines[0].startswith("broken  magika: ")
    assert all(line.startswith("        magika/model.toml: ") for line in lines[1:4])
    assert lines[-1] == "2 models, 1 broken"


def test_every_version_that_is_broken_has_a_line(repository):
    for version in (13, 14):
        (repository / f"magika/{version}").mkdir()
        (repository / f"magika/{version}/model.onnx").touch()

    def none_of_these(entry: ModelEntry, version: VersionFile) -> Signature:
        if version.version > 12:
            raise LoadFailed(entry.name, version.version, "no")
        return classifier(entry, version)

    code, lines = checked(repository, none_of_these)
    assert code == 1
    assert lines[:2] == [
        "broken  magika: model 'magika' version 13 failed to load: no",
        "        model 'magika' version 14 failed to load: no",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", ["no latency objective, goal throughput"]),
        (
            "[objective]\nlatency_slo = 0.05",
            ["latency objective 50 ms for 99 % of requests, 99.9 % to be answered, goal throughput"],
        ),
        (
            '[objective]\ngoal = "latency"\nlatency_slo = 2.5\npercentile = 99.9\navailability = 99',
            ["latency objective 2.5 s for 99.9 % of requests, 99 % to be answered, goal latency"],
        ),
        (
            '[batching]\nmax_delay = "2ms"\n[queue]\nmax_bytes = 67108864\ndefault_timeout = 0.5',
            [
                "no latency objective, goal throughput",
                "given: batching.max_delay = 2ms, queue.max_bytes = 64MiB, queue.default_timeout = 500ms",
            ],
        ),
        (
            '[execution]\nstreams = 2\n[batching]\nenabled = false\n[shapes]\nx = [1, "?"]\n[properties]\nA = "b"',
            [
                "no latency objective, goal throughput",
                "given: execution.streams = 2, batching.enabled = false, shapes.x = [1, ?], properties.A = b",
            ],
        ),
    ],
)
def test_check_shows_the_settings_it_understood(settings, said):
    assert list(summary(parse(settings, "m/model.toml"))) == said


def test_a_file_that_can_not_be_read_as_a_model_breaks_only_its_own(repository):
    (repository / "magika/13").mkdir()
    (repository / "magika/13/model.onnx").touch()
    code, lines = checked(repository, classifier)
    assert code == 1
    assert lines[:2] == [
        "broken  magika: model 'magika' version 13 failed to load: not a model at all",
        "ok      resnet: version 1 on CPU",
    ]
    assert lines[-1] == "2 models, 1 broken"


def test_an_empty_repository_is_fine(tmp_path):
    assert checked(tmp_path) == (0, ["0 models, 0 broken"])


def test_a_repository_that_can_not_be_read_is_an_error(tmp_path):
    with pytest.raises(RepositoryError, match="No such file or directory"):
        checked(tmp_path / "absent")
