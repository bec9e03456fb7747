"""The real server, with real parts and no models."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from inferd.catalog.catalog import Catalog
from inferd.deployment.loader import CatalogLimits
from inferd.engine.cache import BlobCache
from inferd.engine.model import Engine
from inferd.errors import InferdError
from inferd.lifecycle import Lifecycle
from inferd.metrics.recorder import Recorder
from inferd.repository.find import Repository
from inferd.requests import Observation
from inferd.rpc.call import InferCall
from inferd.rpc.control import RepositoryControl
from inferd.rpc.gate import Access
from inferd.rpc.inference import Inference, InferenceSettings
from inferd.rpc.metadata import Metadata
from inferd.rpc.server import Rpcs, Server, ServerSettings
from inferd.rpc.tuning import TunerControl
from inferd.scheduling.rules import QueueLimits
from inferd.security.credentials import Credentials
from inferd.shared_memory.store import RegionStore
from inferd.tuner.operator_commands import OperatorCommands
from inferd.tuner.profile import Profiles
from inferd.tuner.records import TuningRecords
from inferd.tuner.rules import TunerRules
from inferd.tuner.tuner import Tuner


class FutureRecipient:
    """Its ``future`` holds the response of its call, or the error."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def respond(self, _: InferCall, encoded: bytes) -> None:
        self.future.set_result(encoded)

    def refuse(self, _: InferCall, error: InferdError) -> None:
        self.future.set_exception(error)


class Parts:
    """A server with real parts around an empty repository; ``seen`` is what it observed: model,
    version, outcome and reason."""

    def __init__(
        self,
        root: Path,
        log_settings: Mapping[str, Any],
        enabled: Collection[Access] = (Access.REPOSITORY, Access.TUNER),
        credentials: Credentials | None = None,
        shared_memory: RegionStore | None = None,
    ) -> None:
        async def unchanged() -> None:
            return

        recorder = Recorder()
        self.seen: list[tuple[str, str, str, str]] = []

        def observe(one: Observation) -> None:
            # Not the observation itself: its error would keep the whole call alive.
            self.seen.append((one.model, one.version, one.outcome, one.reason))
            recorder.observe(one)

        engine = Engine(1, BlobCache(root / "cache", 0))
        self.lifecycle = Lifecycle()
        self.catalog = Catalog(
            Repository(root),
            engine,
            CatalogLimits(QueueLimits(8, 1 << 20), 1, 1.0),
            observe=observe,
            changed=unchanged,
        )
        self.inference = Inference(
            self.catalog,
            self.lifecycle,
            observe,
            settings=InferenceSettings(8, 1 << 20),
            shared_memory=shared_memory,
        )
        has_regions = shared_memory is not None
        metadata = Metadata(
            self.catalog, self.lifecycle, recorder, log_settings=log_settings, shared_memory=has_regions
        )
        records = TuningRecords(engine, Profiles(root / "profiles"))
        tuner = Tuner(TunerRules("off", 1.0, 1, root / "cache", 0), records, self.catalog)
        control, tuning = RepositoryControl(self.catalog), TunerControl(OperatorCommands(tuner))
        self.server = Server(
            Rpcs(self.inference, metadata, control, tuning, shared_memory),
            ServerSettings(1 << 20, enabled),
            observe,
            credentials=credentials,
        )
