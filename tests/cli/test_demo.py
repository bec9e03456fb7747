import argparse
import socket
from pathlib import Path

import pytest

from inferd.cli import demo


def inferd_demo(*arguments: str) -> int:
    parser = argparse.ArgumentParser("inferd demo")
    demo.add_arguments(parser)
    return demo.run(parser.parse_args(arguments))


def test_without_a_daemon_classify_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str], demo_repository: Path
) -> None:
    with socket.socket() as bound_but_deaf:
        bound_but_deaf.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{bound_but_deaf.getsockname()[1]}"

        status = inferd_demo("classify", "--server", server, "--models", str(demo_repository), __file__)

    assert status == 1
    assert capsys.readouterr().err == (
        f"inferd: no daemon responds at {server} (UNAVAILABLE); start one with `make serve`, or with"
        f" `inferd serve --model-repository {demo_repository} --grpc-bind {server}`\n"
    )


def test_without_the_models_classify_says_how_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inferd_demo("classify", "--models", str(tmp_path), __file__) == 1
    assert capsys.readouterr().err == (
        f"inferd: {tmp_path}/magika/config.min.json: No such file or directory; `inferd demo fetch` fetches it\n"
    )


def test_fetch_says_where_the_models_are(capsys: pytest.CaptureFixture[str], demo_repository: Path) -> None:
    assert inferd_demo("fetch", "--to", str(demo_repository)) == 0
    assert capsys.readouterr().out == f"the demo models are in {demo_repository}\n"
