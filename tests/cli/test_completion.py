"""The completion scripts, in the shells that are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inferd.cli.main import COMMANDS, main
from inferd.config.daemon import Settings
from inferd.config.variables import flag_of

SHELLS = ("bash", "zsh", "fish")
COMPLETE = """
source "$1"
complete -p inferd >/dev/null || exit 1
COMP_WORDS=(${2}); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="$2"; COMP_POINT=${#COMP_LINE}
$(complete -p inferd | sed -E 's/.*-F ([^ ]+).*/\\1/') inferd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_command_and_every_setting(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(command in text for command in COMMANDS)
    # fish names a long option without its dashes.
    assert all((name.replace("_", "-") if shell == "fish" else flag_of(name)) in text for name in Settings.model_fields)


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shutil.which(shell)])
def test_a_shell_reads_its_script(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "completion"
    file.write_text(script(shell, capsys))
    done = subprocess.run([shell, "-n", str(file)], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "among"),
    [
        ("inferd ser", {"serve"}),
        ("inferd serve --queue", {"--queue-max-length", "--queue-max-bytes"}),
        ("inferd serve --tuning o", {"off", "online"}),
        ("inferd tune ex", {"explain", "export"}),
    ],
)
def test_bash_completes(line: str, among: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "completion"
    file.write_text(script("bash", capsys))
    command = ["bash", "-c", COMPLETE, "bash", str(file), line]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == among


def test_a_reader_that_has_had_enough_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "inferd", "completion", "bash"]
    with os.fdopen(write) as output:
        done = subprocess.run(command, check=False, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")
