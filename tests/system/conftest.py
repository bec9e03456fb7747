import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Daemon


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled models are kept between the daemons of one run, by all its processes, and not in the home folder."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "inferd-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def demo_server(demo_repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon that serves the demo repository and is ready; its queues hold what many streams send at once.
    Tests don't change it."""
    with Daemon(demo_repository, "--cache-dir", str(cache_dir), "--queue-max-length", "8192") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()
