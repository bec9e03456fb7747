"""benchmarks/README.md lists every program."""

import re

from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks"


def test_every_program_is_listed_and_no_other() -> None:
    listed = set(re.findall(r"\bbenchmarks\.(\w+)", (FOLDER / "README.md").read_text()))
    programs = {file.stem for file in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in file.read_text()}
    assert listed == programs | {"peers"}
