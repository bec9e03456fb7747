from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Daemon


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled models are kept between the daemons of one run, and not in the home folder."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def demo_server(demo_repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon that serves the demo repository and is ready; its queues hold what many streams send at once."""
    with Daemon(demo_repository, "--cache-dir", str(cache_dir), "--queue-max-length", "8192") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()
