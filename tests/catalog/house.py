"""A catalog with a repository of small models around it."""

import asyncio
import weakref
from pathlib import Path

import pytest

from inferd.catalog.catalog import Catalog
from inferd.deployment.loader import CatalogLimits
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov
from inferd.errors import InferdError
from inferd.repository.find import Repository
from inferd.requests import Observation
from inferd.scheduling.rules import QueueLimits
from tests.engine import models
from tests.replies import Answer, ask


class House:
    """A catalog over the repository at ``root``, closed at the end."""

    def __init__(self, root: Path, drain_seconds: float = 30) -> None:
        self.root = root
        self.root.mkdir(exist_ok=True)
        self.seen: list[Observation] = []
        self.states: list[list[tuple[str, str, str]]] = []
        self.catalog = Catalog(
            Repository(root),
            models.engine(),
            CatalogLimits(QueueLimits(1000, 1 << 30), 2, drain_seconds),
            observe=self.seen.append,
            changed=self._changed,
        )

    async def _changed(self) -> None:
        self.states.append(self.index())

    async def __aenter__(self) -> "House":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.catalog.close()

    def put(self, name: str, network: ov.Model | bytes, toml: str = "", version: int = 1) -> None:
        folder = self.root / name / str(version)
        if isinstance(network, bytes):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.xml").write_bytes(network)
        else:
            models.save(network, folder)
        (self.root / name / "model.toml").write_text(toml)

    def index(self) -> list[tuple[str, str, str]]:
        return [(e.name, e.version, e.state.value) for e in self.catalog.index()]

    def reason(self, name: str) -> str:
        return next(e.reason for e in self.catalog.index() if e.name == name)

    def submit(self, name: str, *inputs: object, version: str = "") -> Answer:
        request, answer = ask(*inputs)
        _, deployment = self.catalog.resolve(name, version)
        deployment.dispatcher.submit(request)
        return answer

    async def times(self, name: str, version: str = "") -> float:
        """By what the model answering multiplies."""
        # What runs inline is answered without the loop having had a turn, and callers ask again and again.
        await asyncio.sleep(0)
        answer = await self.submit(name, [1, 1, 1, 1], version=version).ended()
        assert answer.error is None
        return float(answer.outputs[0][0])

    def pools(self, name: str) -> list["weakref.ref[Pool]"]:
        _, deployment = self.catalog.resolve(name, "")
        return [weakref.ref(entry.pool) for entry in deployment.loaded.pools]

    def refusal(self, name: str, version: str = "") -> InferdError:
        with pytest.raises(InferdError) as refused:
            self.catalog.resolve(name, version)
        return refused.value
