"""The models found on real trees of files, and the errors for those that can't be served."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.config.model import ModelConfig
from inferd.errors import ConfigurationError, InferdError, RepositoryError, UnknownModel
from inferd.patience import mark
from inferd.repository.find import FORMATS, ModelEntry, Repository


def plant(root: Path, *files: str, **texts: str) -> Path:
    """Empty ``files`` under ``root``; ``texts`` gives the content of <key>/model.toml."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    for model, text in texts.items():
        (root / model).mkdir(parents=True, exist_ok=True)
        (root / model / "model.toml").write_text(text)
    return root


def served(root: Path) -> dict[str, list[int]]:
    return {m.name: [v.version for v in m.versions] for m in Repository(root).scan().models}


def problems(root: Path) -> dict[str, str]:
    return {b.name: str(b.error) for b in Repository(root).scan().broken}


# -- the folder as a whole ----------------------------------------------------------


@pytest.mark.parametrize("files", [(), ("README.md",), (".hidden/1/model.onnx",), ("lost+found/x",)])
def test_a_folder_without_models_is_odd(tmp_path: Path, files: tuple[str, ...]) -> None:
    assert Repository(plant(tmp_path, *files)).oddity() == (
        f"holds no models; expected: REPOSITORY/MODEL/VERSION/model.onnx, such as {tmp_path}/MODEL/1/model.onnx"
    )


@pytest.mark.parametrize(
    ("files", "held"),
    [
        (("1/model.onnx",), "1/"),
        (("1/model.onnx", "2/model.xml", "2/model.bin"), "1/, 2/"),
        (("1/model.onnx", "model.toml"), "1/, model.toml"),
        (("model.onnx",), "model.onnx"),
        (("model.saved_model/saved_model.pb",), "model.saved_model/"),
        (("other.onnx", "model.toml"), "model.toml, other.onnx"),
    ],
)
@pytest.mark.parametrize("below", ["", "7"])
def test_the_folder_of_one_model_is_odd(tmp_path: Path, files: tuple[str, ...], held: str, below: str) -> None:
    """The error of the model or of one of its versions."""
    folder = plant(tmp_path / "repository" / "echo" / below, *files)
    assert Repository(folder).oddity() == (
        f"looks like the folder of one model, as it holds {held}; name the folder above that model: "
        f"REPOSITORY/MODEL/VERSION/model.onnx, such as {tmp_path}/repository/echo/1/model.onnx"
    )


@pytest.mark.parametrize(
    "files",
    [("echo/1/model.onnx",), ("echo.onnx",), ("1/model.onnx", "echo/model.onnx"), ("model.onnx", "echo.onnx")],
)
def test_any_other_folder_is_not_odd(tmp_path: Path, files: tuple[str, ...]) -> None:
    assert Repository(plant(tmp_path, *files)).oddity() == ""
    assert Repository(tmp_path / "absent").oddity() == ""


# -- layouts ----------------------------------------------------------------------


@pytest.mark.parametrize("extension", FORMATS)
def test_each_layout_is_found_for_each_format(tmp_path, extension):
    plant(tmp_path, f"versioned/7/model{extension}", f"unversioned/model{extension}", f"single{extension}")
    listing = Repository(tmp_path).scan()
    assert listing.broken == ()
    assert [(m.name, v.version, v.file_set.main.relative_to(tmp_path)) for m in listing.models for v in m.versions] == [
        ("single", 1, Path(f"single{extension}")),
        ("unversioned", 1, Path(f"unversioned/model{extension}")),
        ("versioned", 7, Path(f"versioned/7/model{extension}")),
    ]


def test_a_model_without_a_settings_file_has_the_defaults(tmp_path):
    plant(tmp_path, "m/1/model.onnx")
    assert Repository(tmp_path).find("m").config == ModelConfig()


def test_the_settings_of_a_model_come_from_its_file(tmp_path):
    plant(tmp_path, "m/model.onnx", m="[execution]\nstreams = 3")
    assert Repository(tmp_path).find("m").config.execution.streams == 3


def test_one_model_file_may_have_another_name(tmp_path):
    plant(tmp_path, "m/1/resnet.onnx", "m/1/labels.txt")
    assert Repository(tmp_path).find("m").versions[0].file_set.main == tmp_path / "m/1/resnet.onnx"


def test_a_file_called_model_takes_precedence(tmp_path):
    plant(tmp_path, "m/1/a.onnx", "m/1/model.xml", "m/1/z.pb")
    assert Repository(tmp_path).find("m").versions[0].file_set.main == tmp_path / "m/1/model.xml"


def test_hidden_and_unrelated_entries_are_ignored(tmp_path):
    plant(tmp_path, "README.md", "labels.txt", ".git/config", ".hidden.onnx", "m/.cache/x", "m/1/.model.xml.part")
    plant(tmp_path, "m/1/model.onnx", "m/assets/vocabulary.txt", "lost+found/x")
    assert served(tmp_path) == {"m": [1]}
    assert problems(tmp_path) == {}


def test_an_empty_repository_has_no_models_and_no_errors(tmp_path):
    listing = Repository(tmp_path).scan()
    assert (listing.models, listing.broken) == ((), ())


def test_listings_are_sorted_by_name(tmp_path):
    plant(tmp_path, "b.onnx", "a/1/model.xml", "c.xml", "z/x", "y/x")
    listing = Repository(tmp_path).scan()
    assert [m.name for m in listing.models] == ["a", "b", "c"]
    assert [b.name for b in listing.broken] == ["y", "z"]


# -- the files that make up a version ---------------------------------------------


@pytest.mark.parametrize(
    ("files", "own"),
    [
        (["m/1/model.xml", "m/1/model.bin", "m/1/notes.txt", "m/2.txt"], ["model.bin", "model.xml", "notes.txt"]),
        (["m/1/model.xml"], ["model.xml"]),
        (["m/1/model.onnx", "m/1/.weights", "m/1/a/.b/w", "m/x/y"], [".weights", "a/.b/w", "model.onnx"]),
        (["m/model.onnx", "m/model.toml", "m/a/model.toml", "n/1/model.onnx"], ["a/model.toml", "model.onnx"]),
        (["m/1/model.pdmodel", "m/1/model.pdiparams"], ["model.pdiparams", "model.pdmodel"]),
        (["m/1/saved_model.pb", "m/1/variables/v"], ["saved_model.pb", "variables/v"]),
        (["m/1/model.saved_model/saved_model.pb"], ["model.saved_model/saved_model.pb"]),
        (["m/1/model.onnx", "m/1/lost+found/x"], ["model.onnx"]),
        # At the root, the companion files of the format, and nothing else.
        (["m.xml", "m.bin", "n.xml", "n.bin", "README.md"], ["m.bin", "m.xml"]),
        (["m.pdmodel", "m.pdiparams", "m.txt"], ["m.pdiparams", "m.pdmodel"]),
        (["m.onnx", "m.onnx.data"], ["m.onnx"]),
        (["m.saved_model/saved_model.pb", "m.saved_model/variables/v"], ["saved_model.pb", "variables/v"]),
    ],
)
def test_a_version_is_everything_below_its_folder(tmp_path, files, own):
    (version,) = Repository(plant(tmp_path, *files)).find("m").versions
    assert sorted(f.name for f in version.content.files) == own


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["m/1/model.saved_model/saved_model.pb"], "m/1/model.saved_model"),
        (["m/1/net.saved_model/saved_model.pb", "m/1/net.saved_model/fingerprint.pb"], "m/1/net.saved_model"),
        (["m/1/saved_model.pb", "m/1/fingerprint.pb", "m/1/keras_metadata.pb", "m/1/variables/v"], "m/1"),
        (["m/model.saved_model/saved_model.pb"], "m/model.saved_model"),
        (["m/saved_model.pb"], "m"),
        (["m.saved_model/saved_model.pb"], "m.saved_model"),
    ],
)
def test_a_saved_model_is_found_in_place_of_a_file(tmp_path, files, read):
    (version,) = Repository(plant(tmp_path, *files)).find("m").versions
    assert version.file_set.main == version.content.main == tmp_path / read


# -- which versions are served ----------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "picked"),
    [
        ("", [10]),
        ('policy = "latest"\ncount = 2', [9, 10]),
        ("count = 1000", [2, 9, 10]),
        ('policy = "all"', [2, 9, 10]),
        ('policy = "listed"\nlisted = [10, 2, 2]', [2, 10]),
    ],
)
def test_the_policy_picks_versions_by_number_in_ascending_order(tmp_path, policy, picked):
    plant(tmp_path, *(f"m/{n}/model.onnx" for n in (9, 10, 2)), m=f"[versions]\n{policy}")
    assert served(tmp_path) == {"m": picked}


def test_an_absent_listed_version_is_an_error_that_names_the_present_ones(tmp_path):
    plant(tmp_path, "m/1/model.onnx", "m/4/model.onnx", m='[versions]\npolicy = "listed"\nlisted = [4, 3]')
    assert problems(tmp_path) == {"m": "m/model.toml: versions.listed names 3, which is absent; present: 1, 4"}


def test_a_version_that_is_not_served_may_be_in_any_state(tmp_path):
    plant(tmp_path, "m/2/model.onnx")
    (tmp_path / "m/1").mkdir()
    assert served(tmp_path) == {"m": [2]}


# -- what can't be served, in words -----------------------------------------------

EXTENSIONS = "xml, onnx, pb, tflite, pdmodel, saved_model"

BROKEN = {
    "two model files of other names": (
        ["m/1/a.onnx", "m/1/b.xml"],
        "m/1: holds several model files: a.onnx, b.xml; keep one",
    ),
    "two files called model": (
        ["m/1/model.onnx", "m/1/model.xml", "m/1/other.pb"],
        "m/1: holds several model files: model.onnx, model.xml; keep one",
    ),
    "a version without a model": (
        ["m/1/labels.txt"],
        f"m/1: holds no model; expected: model.<ext>, where <ext> is one of {EXTENSIONS}; found: labels.txt",
    ),
    "a folder without a model": (
        ["m/v1/model.onnx", "m/README.md"],
        "m: holds no model; expected: <version>/model.<ext> or model.<ext>, "
        f"where <ext> is one of {EXTENSIONS}; found: README.md, v1/",
    ),
    "versions next to a model file": (
        ["m/1/model.onnx", "m/2/model.onnx", "m/model.onnx"],
        "m: holds versions (1, 2) and model files next to them (model.onnx); keep one kind",
    ),
    "a version with a leading zero": (
        ["m/01/model.onnx", "m/2/model.onnx"],
        "m: can't be versions: 01/; allowed: a whole number of 1 or more without leading zeros",
    ),
    "version 0": (
        ["m/0/model.onnx"],
        "m: can't be versions: 0/; allowed: a whole number of 1 or more without leading zeros",
    ),
    "a folder and a file of one name": (
        ["m/1/model.onnx", "m.onnx"],
        "m: more than one entry claims this name: m/, m.onnx; keep one",
    ),
    "two files of one name": (
        ["m.onnx", "m.xml"],
        "m: more than one entry claims this name: m.onnx, m.xml; keep one",
    ),
}


@pytest.mark.parametrize(("files", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_model_is_named_with_its_reason_and_the_others_are_served(tmp_path, files, sentence):
    plant(tmp_path, *files, "sound/1/model.onnx")
    assert problems(tmp_path) == {"m": sentence}
    assert served(tmp_path) == {"sound": [1]}
    with pytest.raises(RepositoryError) as raised:
        Repository(tmp_path).find("m")
    assert str(raised.value) == sentence


def test_a_version_beyond_int64_is_refused(tmp_path):
    plant(tmp_path, f"m/{2**63}/model.onnx")
    assert problems(tmp_path)["m"].startswith(f"m: can't be versions: {2**63}/;")


@pytest.mark.parametrize("name", ["my model", "_private", "-x", "ä", "x" * 129, "a\nb"])
def test_an_illegal_name_is_an_error_saying_what_is_allowed(tmp_path, name):
    plant(tmp_path, f"{name}/1/model.onnx", "sound.onnx")
    shown = name.replace("\n", " ")
    assert problems(tmp_path) == {
        shown: f"{shown}: can't be a model's name; allowed: up to 128 letters, digits, '.', '_' or '-', "
        "of which the first is a letter or digit"
    }
    assert served(tmp_path) == {"sound": [1]}


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse names that are not UTF-8")
def test_names_that_are_not_text_give_a_message_that_can_be_sent(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    ((name, message),) = problems(tmp_path).items()
    assert (name + message).encode("utf-8").startswith(b" ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[execution]\nprecision = 'f8'",
            "m/model.toml: execution.precision: got 'f8'; allowed: 'auto', 'f32', 'bf16' or 'f16'",
        ),
        ("devices = [", "m/model.toml: not valid TOML: Invalid value (at end of document)"),
    ],
)
def test_a_bad_settings_file_is_named_relative_to_the_root(tmp_path, text, sentence):
    plant(tmp_path, "m/1/model.onnx", "sound.onnx", m=text)
    assert problems(tmp_path) == {"m": sentence}
    assert served(tmp_path) == {"sound": [1]}
    with pytest.raises(ConfigurationError):
        Repository(tmp_path).find("m")


def test_a_root_that_is_absent_or_not_a_folder_is_an_error_that_names_it(tmp_path):
    file = plant(tmp_path, "file") / "file"
    for root, reason in ((tmp_path / "absent", "No such file or directory"), (file, "Not a directory")):
        with pytest.raises(RepositoryError) as raised:
            Repository(root).scan()
        assert str(raised.value) == f"{root}: can't be read: {reason}"


def test_a_client_asking_for_a_model_does_not_learn_where_the_repository_is(tmp_path):
    with pytest.raises(RepositoryError) as raised:
        Repository(tmp_path / "absent").find("m")
    assert str(raised.value) == "m: the model repository can't be read: No such file or directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_breaks_only_its_own_model(tmp_path):
    plant(tmp_path, "m/1/model.onnx", "sound.onnx")
    (tmp_path / "m").chmod(0)
    try:
        assert problems(tmp_path) == {"m": "m: can't be read: Permission denied"}
        assert served(tmp_path) == {"sound": [1]}
    finally:
        (tmp_path / "m").chmod(0o700)


# -- symbolic links ---------------------------------------------------------------


@pytest.fixture
def inside(tmp_path):
    """A repository with a neighbouring folder that holds a valid model."""
    plant(tmp_path, "outside/1/model.onnx", "outside/model.onnx", "outside/model.bin", outside="")
    return plant(tmp_path, "inside/sound.onnx") / "inside"


@pytest.mark.parametrize(
    ("link", "target", "neighbours"),
    [
        ("m", "outside", []),
        ("m.onnx", "outside/model.onnx", []),
        ("m/1", "outside/1", []),
        ("m/model.onnx", "outside/model.onnx", []),
        ("m/1/model.onnx", "outside/model.onnx", []),
        ("m/model.toml", "outside/model.toml", ["m/1/model.onnx"]),
        ("m/1/model.bin", "outside/model.bin", ["m/1/model.xml"]),
        ("m/1/weights", "outside/model.bin", ["m/1/model.onnx"]),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_repository_is_refused(inside, link, target, neighbours, absolute):
    plant(inside, *neighbours)
    (inside / link).parent.mkdir(parents=True, exist_ok=True)
    destination = inside.parent / target
    (inside / link).symlink_to(
        destination if absolute else os.path.relpath(destination, (inside / link).parent),
        target_is_directory=destination.is_dir(),
    )
    assert problems(inside) == {"m": f"{link}: is a symbolic link that leads out of the model repository"}
    assert served(inside) == {"sound": [1]}


def test_a_link_to_a_folder_whose_name_only_starts_like_the_root_is_refused(tmp_path):
    plant(tmp_path, "models-old/1/model.onnx")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m").symlink_to(tmp_path / "models-old")
    assert problems(tmp_path / "models") == {"m": "m: is a symbolic link that leads out of the model repository"}


def test_a_chain_of_links_counts_by_where_it_ends(inside):
    (inside / "m.onnx").symlink_to(".hop")
    (inside / ".hop").symlink_to(inside.parent / "outside/model.onnx")
    assert list(problems(inside)) == ["m"]


def test_links_within_the_repository_are_followed(tmp_path):
    plant(tmp_path, ".store/blob", ".store/bert/1/model.onnx", "a/1/model.onnx")
    (tmp_path / "b").symlink_to(".store/bert")
    (tmp_path / "c.onnx").symlink_to(".store/blob")
    (tmp_path / "a/2").symlink_to("1")
    assert served(tmp_path) == {"a": [2], "b": [1], "c": [1]}


def test_the_root_itself_may_be_a_link(tmp_path):
    plant(tmp_path, "data/m/1/model.onnx", m="")
    (tmp_path / "root").symlink_to("data")
    assert served(tmp_path / "root") == {"m": [1]}


@pytest.mark.parametrize("link", ["m", "m.onnx", "m/3", "m/1/model.onnx", "m/model.toml"])
@pytest.mark.parametrize("target", ["gone", "x" * 300], ids=["absent", "too long a name"])
def test_a_broken_link_breaks_only_its_own_model(inside, link, target):
    (inside / link).parent.mkdir(parents=True, exist_ok=True)
    (inside / link).symlink_to(target)
    assert problems(inside) == {"m": f"{link}: is a broken or unreadable symbolic link"}
    assert served(inside) == {"sound": [1]}


def test_a_loop_of_links_breaks_only_its_own_model(inside):
    (inside / "m").symlink_to("m")
    assert problems(inside) == {"m": "m: is a broken or unreadable symbolic link"}


# -- asking for one model ---------------------------------------------------------


def test_a_model_found_by_name_is_read_from_disk_again(tmp_path):
    repository = Repository(plant(tmp_path, "m/1/model.onnx"))
    assert [v.version for v in repository.find("m").versions] == [1]
    plant(tmp_path, "m/2/model.onnx")
    assert [v.version for v in repository.find("m").versions] == [2]


def test_a_model_is_not_found_under_the_name_of_its_file(tmp_path):
    repository = Repository(plant(tmp_path, "m.onnx", "n.xml.onnx"))
    assert repository.find("n.xml").name == "n.xml"
    for name in ("m.onnx", "n", "n.xml.onnx", "M", "absent"):
        with pytest.raises(UnknownModel):
            repository.find(name)


NAMES = st.one_of(
    st.text(),
    st.text(alphabet="ab./\\-_ \0\n~%", max_size=8),
    st.sampled_from(["..", ".", "", "/etc", "../outside", "m/../../outside", "sound/../..", "sound\n", "sound/", "é"]),
)


@given(name=NAMES)
def test_no_name_reaches_anything_but_the_models_of_the_repository(name):
    with TemporaryDirectory() as folder:
        plant(Path(folder), "outside/1/model.onnx", "outside.onnx", "root/sound/1/model.onnx", "root/a.onnx")
        repository = Repository(Path(folder) / "root")
        try:
            entry = repository.find(name)
        except UnknownModel:
            assert name not in ("sound", "a")
        else:
            assert entry in repository.scan().models
            assert entry.name == name


@given(name=NAMES)
def test_an_illegal_name_is_refused_before_the_disk_is_asked(name):
    legal = name.isascii() and name[:1].isalnum() and all(c.isalnum() or c in "._-" for c in name) and len(name) <= 128
    # The root does not exist, so reading the disk raises RepositoryError.
    with pytest.raises(RepositoryError if legal else UnknownModel):
        Repository(Path("no such folder")).find(name)


ENTRIES = st.sets(
    st.sampled_from(
        [
            *("a.onnx", "a.xml", "a.onnx.onnx", "a/model.onnx", "a/x.pb", "a/1/model.onnx", "a/2/model.xml", "a/01/x"),
            *("b/x", "b/3/y.pb", "b/model.toml", "b.txt", ".e.onnx"),
        ]
    )
)


@given(files=ENTRIES)
def test_finding_a_model_and_scanning_agree(files):
    with TemporaryDirectory() as folder:
        repository = Repository(plant(Path(folder), *files))
        listing = repository.scan()
        assert all(repository.find(m.name) == m for m in listing.models)
        for b in listing.broken:
            with pytest.raises(InferdError) as raised:
                repository.find(b.name)
            assert str(raised.value) == str(b.error)
            assert folder not in str(b.error)


def test_looking_for_models_does_not_import_openvino():
    program = "import inferd.repository.find, sys; sys.exit('openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# -- what a repository must not be able to do ---------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "/etc",
        "../m",
        "m/../m",
        "m/1",
        "./m",
        ".m",
        "m\0",
        "m\n",
        "-m",
        "m m",
        "ｍ",
        "m" * 129,
        "C:\\m",
        "m\u2028",
    ],
)
def test_names_that_could_lead_elsewhere_are_unknown(name: str, tmp_path: Path) -> None:
    plant(tmp_path, "m/1/model.xml")
    with pytest.raises(UnknownModel) as unknown:
        Repository(tmp_path).find(name)
    assert "\n" not in str(unknown.value)


def test_a_link_that_leads_out_is_followed_only_where_that_is_allowed(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/1/model.xml")
    root = tmp_path / "root"
    root.mkdir()
    (root / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RepositoryError, match="leads out of the model repository"):
        Repository(root).find("m")
    allowed = Repository(root, external_links=True)
    assert [v.version for v in allowed.find("m").versions] == [1]
    (root / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match="broken or unreadable symbolic link"):
        allowed.find("lost")


def test_models_beyond_the_limit_are_broken_and_the_first_by_name_are_served(tmp_path: Path) -> None:
    for name in "abc":
        plant(tmp_path, f"{name}/1/model.xml")
    repository = Repository(tmp_path, max_models=2)
    listing = repository.scan()
    assert [m.name for m in listing.models] == ["a", "b"]
    problem = "c: the repository holds more than 2 models (repository_max_models); remove some"
    assert [str(b.error) for b in listing.broken] == [problem]
    assert repository.find("b").name == "b"
    with pytest.raises(RepositoryError, match="holds more than 2 models"):
        repository.find("c")


class _PartlyHung(Repository):
    """A repository in which the folder of the model ``hung`` does not answer until ``answers`` is set."""

    answers = threading.Event()

    def _entry(self, name: str, paths: Sequence[Path]) -> ModelEntry:
        if name == "hung":
            mark("hung/1/model.xml")
            self.answers.wait()
        return super()._entry(name, paths)


def test_a_folder_that_does_not_answer_is_named_and_keeps_no_other_model_away(tmp_path: Path) -> None:
    plant(tmp_path, "a/1/model.xml", "hung/1/model.xml", "z/1/model.xml")
    repository = _PartlyHung(tmp_path, seconds=0.2)
    listing = repository.scan()
    assert [m.name for m in listing.models] == ["a", "z"]
    assert [str(b.error) for b in listing.broken] == ["hung: can't be read: no answer for 0.2 s from hung/1/model.xml"]
    threads = threading.active_count()
    for _ in range(3):
        again = repository.scan()
        assert (again.models, [b.name for b in again.broken]) == (listing.models, ["hung"])
        assert str(again.broken[0].error) == "hung: can't be read: still waiting for hung/1/model.xml"
        assert repository.find("a").name == "a"
        with pytest.raises(RepositoryError, match="still waiting for"):
            repository.find("hung")
    assert threading.active_count() == threads

    repository.answers.set()
    for thread in threading.enumerate():
        if thread.name == "patience":
            thread.join(10)
    assert [m.name for m in repository.scan().models] == ["a", "hung", "z"]


def test_a_model_larger_than_the_limit_is_named_and_keeps_no_other_away(tmp_path: Path) -> None:
    plant(tmp_path, "a/1/model.xml", "b/1/model.xml")
    (tmp_path / "b/1/model.bin").touch()
    os.truncate(tmp_path / "b/1/model.bin", 100 << 30)
    listing = Repository(tmp_path).scan()
    assert [m.name for m in listing.models] == ["a"]
    problem = "b/1/model.bin: has 107374182400 bytes, more than 68719476736 (repository_max_model_bytes)"
    assert [str(b.error) for b in listing.broken] == [problem]


def test_settings_in_a_pipe_or_of_any_size_are_not_read(tmp_path: Path) -> None:
    for name in ("m", "n"):
        plant(tmp_path, f"{name}/1/model.xml")
    os.mkfifo(tmp_path / "m/model.toml")
    (tmp_path / "n/model.toml").write_text("#" * (64 << 10) + "\n")
    assert [str(b.error) for b in Repository(tmp_path).scan().broken] == [
        "m/model.toml: is not a regular file",
        "n/model.toml: is larger than 65536 bytes",
    ]
