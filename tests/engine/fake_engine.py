"""An engine without devices: what it loads runs on fake slots, and its devices can be lost."""

from collections.abc import Mapping
from threading import Event

from inferd.engine.device import Effective
from inferd.engine.model import LoadedModel, LoadedPool, LoadTimings
from inferd.engine.pool import Pool
from inferd.engine.source import ModelSource
from inferd.errors import DeviceAbsent
from inferd.tensors import Dim, DType, Signature, TensorSpec
from tests.engine.fake_slot import FakeSlot

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, (Dim(4, 4),)),),
    (TensorSpec("x", DType.FP32, (Dim(4, 4),)),),
)
_EFFECTIVE = Effective(
    "f32", "accuracy", "throughput", 1, 1, 1, (), {"pinning": None, "hyper_threading": None, "core_type": None}
)

_SIZE = 2


class FakeEngine:
    """Loads any model onto two slots a device. ``present`` are the devices there are; ``loads`` counts what was
    tried; ``slots`` are those of everything loaded, by device, the latest last. While ``no_more`` is there, making
    further slots for what is loaded waits for it."""

    cache_lookups: Mapping[str, int] = {}

    def __init__(self, *present: str, deaf: bool = False) -> None:
        self.present = set(present)
        self.loads = 0
        self.slots: dict[str, list[FakeSlot]] = {}
        self.no_more: Event | None = None
        self._deaf = deaf

    def load(self, source: ModelSource) -> LoadedModel:
        self.loads += 1
        for device in source.config.devices:
            if device not in self.present:
                raise DeviceAbsent(device, device, sorted(self.present))
        pools = tuple(
            LoadedPool(self._pool(device), _EFFECTIVE, (), 0.5, False, LoadTimings(0.0, 0.0, 0.0))
            for device in source.config.devices
        )
        return LoadedModel(SIGNATURE, pools, 0.1)

    def is_present(self, device: str) -> bool:
        return device in self.present

    def running(self, device: str) -> list[FakeSlot]:
        """Its slots with a run in flight."""
        return [slot for slot in self.slots.get(device, []) if slot.running]

    def _pool(self, device: str) -> Pool:
        made = 0

        def make(on_done: object) -> FakeSlot:
            nonlocal made
            made += 1
            if made > _SIZE and self.no_more is not None:
                self.no_more.wait(30)
            slot = FakeSlot(on_done, deaf=self._deaf)  # type: ignore[arg-type]
            self.slots.setdefault(device, []).append(slot)
            return slot

        return Pool(device, _SIZE, make)
