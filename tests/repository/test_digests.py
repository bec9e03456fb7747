"""With a list of digests, only files that it lists are served, and only with that content."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import LoadFailed, RepositoryError
from inferd.repository import digests
from inferd.repository.find import Repository
from tests.engine import models as small

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\\"), min_size=1
)


def planted(root: Path) -> Path:
    """A repository in ``root``: a model with settings and two versions, and one that is a file."""
    for version in (1, 2):
        small.save(small.scaled(version), root / "models" / "m" / str(version))
    (root / "models" / "m" / "model.toml").write_text('[versions]\npolicy = "all"\n')
    (root / "models" / "alone.onnx").write_bytes(b"no model")
    return root / "models"


def listed(repository: Path) -> Path:
    """The list of all its files, as sha256sum makes it, next to it."""
    command = "find * -type f -exec sha256sum {} + > ../digests"
    subprocess.run(["sh", "-c", command], cwd=repository, check=True)
    return repository.parent / "digests"


def broken(repository: Path, file: Path) -> dict[str, str]:
    return {one.name: str(one.error) for one in Repository(repository, digests_file=file).scan().broken}


def test_what_is_listed_is_served(tmp_path: Path) -> None:
    repository = planted(tmp_path)
    found = Repository(repository, digests_file=listed(repository)).scan()
    assert [(model.name, [v.version for v in model.versions]) for model in found.models] == [
        ("alone", [1]),
        ("m", [1, 2]),
    ]
    assert not found.broken
    assert all(v.content.read().digest == v.file_set.look().read().digest for m in found.models for v in m.versions)
    # The same content as without a list.
    plain = Repository(repository).scan()
    assert [m.versions[0].content.read().digest for m in found.models] == [
        m.versions[0].content.read().digest for m in plain.models
    ]


@pytest.mark.parametrize("added", ["m/1/other.bin", "m/2/.hidden", "m/3/model.xml"])
def test_a_file_that_is_not_listed_breaks_its_model_and_no_other(tmp_path: Path, added: str) -> None:
    repository = planted(tmp_path)
    file = listed(repository)
    (repository / added).parent.mkdir(exist_ok=True)
    (repository / added).write_bytes(b"")
    assert broken(repository, file) == {"m": f"{added}: is not listed in model_digests"}
    with pytest.raises(RepositoryError, match="is not listed"):
        Repository(repository, digests_file=file).find("m")
    assert Repository(repository, digests_file=file).find("alone").name == "alone"


def test_settings_are_listed_too(tmp_path: Path) -> None:
    repository = planted(tmp_path)
    file = listed(repository)
    settings = repository / "m" / "model.toml"
    wanted = hashlib.sha256(settings.read_bytes()).hexdigest()
    settings.write_text('[versions]\npolicy = "latest"\n')
    has = hashlib.sha256(settings.read_bytes()).hexdigest()
    assert broken(repository, file) == {"m": f"m/model.toml: has the digest {has}; model_digests lists {wanted}"}


def test_settings_that_are_listed_are_there(tmp_path: Path) -> None:
    """Without them the model would be served with the defaults."""
    repository = planted(tmp_path)
    file = listed(repository)
    (repository / "m" / "model.toml").unlink()
    assert broken(repository, file) == {"m": "m/model.toml: is listed in model_digests and absent"}
    listed(repository)
    assert not broken(repository, file)


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    """A listed file can't stand in for another one."""
    repository = planted(tmp_path)
    file = listed(repository)
    for name in ("model.xml", "model.bin"):
        (repository / "m" / "2" / name).unlink()
        (repository / "m" / "2" / name).symlink_to(f"../1/{name}")
    entry = Repository(repository, digests_file=file).find("m")
    with pytest.raises(RepositoryError, match=r"m/2/model.(bin|xml): has the digest"):
        entry.versions[1].content.read()


def test_other_content_is_not_loaded(tmp_path: Path) -> None:
    repository = planted(tmp_path)
    file = listed(repository)
    changed = repository / "m" / "2" / "model.bin"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    entry = Repository(repository, digests_file=file).find("m")
    source = small.source(changed)
    good, bad = (type(source)("m", v.version, v.file_set, entry.config) for v in entry.versions)
    assert good.settled().digest
    with pytest.raises(
        LoadFailed, match=r"m/2/model.bin: has the digest [0-9a-f]{64}; model_digests lists [0-9a-f]{64}"
    ):
        bad.settled()
    # A new list takes effect at the next look.
    listed(repository)
    entry = Repository(repository, digests_file=file).find("m")
    assert type(source)("m", 2, entry.versions[1].file_set, entry.config).settled().digest


@given(st.dictionaries(NAMES, st.binary(max_size=8), max_size=5), st.booleans())
def test_lists_are_read_as_sha256sum_writes_them(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], binary: bool
) -> None:
    wanted = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if not name.startswith("./")}
    file = tmp_path_factory.mktemp("list") / "digests"
    file.write_text("".join(f"{digest} {'*' if binary else ' '}{name}\n" for name, digest in wanted.items()))
    assert digests.read(file) == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("abc  m/1/model.onnx", "line 1 is no digest and path as sha256sum writes them: abc  m/1/model.onnx"),
        ("\n" + "0" * 64, "line 2 is no digest and path as sha256sum writes them: " + "0" * 64),
        ("\\" + "0" * 64 + "  a", "line 1 is no digest and path"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    file = tmp_path / "digests"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RepositoryError) as refused:
        digests.read(file)
    assert str(refused.value).startswith(f"{file}: {problem}")


def test_an_absent_list_serves_nothing(tmp_path: Path) -> None:
    repository = planted(tmp_path)
    with pytest.raises(RepositoryError, match="can't be read: No such file or directory"):
        Repository(repository, digests_file=tmp_path / "absent").scan()
