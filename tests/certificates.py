"""Certificates of every kind that a test wants, made with the openssl command."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

if shutil.which("openssl") is None:
    if "CI" in os.environ:
        pytest.fail("openssl is not installed")
    pytest.skip("openssl is not installed", allow_module_level=True)

_CONFIGURATION = """
[ca]
default_ca = made
[made]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


class CertificateAuthority:
    """Issues certificates in ``folder``; its own is in ``certificate``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        (folder / "index").touch()
        (folder / "ca.cnf").write_text(_CONFIGURATION.format(folder=folder))
        self._run("req", "-x509", *self._new(self._key), "-subj", "/CN=authority", "-out", str(self.certificate))

    def issue(
        self, name: str, *alternatives: str, start: str = "20200101000000Z", end: str = "20991231235959Z"
    ) -> Pair:
        """For ``name``, with ``alternatives`` such as DNS:localhost, valid from ``start`` to ``end``."""
        file = self._folder / f"{name.replace('/', '-')}-{end}"
        pair = Pair(file.with_suffix(".pem"), file.with_suffix(".key"))
        request, extensions = file.with_suffix(".csr"), file.with_suffix(".ext")
        self._run("req", *self._new(pair.key), "-subj", f"/CN={name}", "-out", str(request))
        said = f"subjectAltName={','.join(alternatives)}" if alternatives else "basicConstraints=CA:FALSE"
        extensions.write_text(said + "\n")
        command = ["ca", "-batch", "-notext", "-config", str(self._folder / "ca.cnf"), "-startdate", start]
        command += ["-enddate", end, "-extfile", str(extensions), "-cert", str(self.certificate)]
        self._run(*command, "-keyfile", str(self._key), "-in", str(request), "-out", str(pair.certificate))
        return pair

    def lock(self, key: Path, locked: Path) -> None:
        """Write ``key`` to ``locked``, with a password."""
        self._run("pkcs8", "-topk8", "-in", str(key), "-out", str(locked), "-passout", "pass:word")

    @staticmethod
    def _new(key: Path) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]

    def _run(self, *command: str) -> None:
        ended = subprocess.run(["openssl", *command], check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


EXPIRED = "20200102000000Z"
