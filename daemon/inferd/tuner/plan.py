"""The plan for tuning a model version: the device, the candidates, the seeds, and the key of the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferd.config.model import ObjectiveSettings
from inferd.engine import device as devices
from inferd.engine.model import Engine
from inferd.engine.runtime import version as openvino_version
from inferd.engine.source import ModelSource
from inferd.tuner.configure import Seeds, goal_of, seeds_of, space_of
from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.goal import Goal


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """The search to make: ``source`` has the settings of ``model.toml``, and ``device`` is its only device."""

    source: ModelSource
    device: str
    key: Mapping[str, str]
    space: Space
    goal: Goal
    seeds: Sequence[Candidate]


def tunable_device(engine: Engine, source: ModelSource) -> tuple[str, str]:
    """The resolved device to tune ``source`` on and "", or "" and why there is none. Raises DeviceAbsent."""
    if len(source.config.devices) > 1:
        return "", "it is served on several devices with one set of settings"
    if source.config.execution.path == "inline":
        return "", "its runs are inline"
    device = devices.resolve(source.config.devices[0], engine.available_devices)
    if devices.family(device) not in ("CPU", "GPU", "NPU"):
        return "", f"{devices.family(device)} chooses its own settings"
    tunables = engine.tunable(device, source.cpu_threads)
    if tunables.threads == 1 and tunables.streams == (1, 1) and not tunables.choices:
        return "", f"there is nothing to tune on {device}"
    return device, ""


def key_of(engine: Engine, source: ModelSource, device: str) -> dict[str, str]:
    """The conditions under which a result for ``source`` on ``device`` is valid. Raises LoadFailed if a file can't be
    read."""
    config = source.config
    execution = config.execution
    return {
        "model": source.settled().digest,
        "openvino": openvino_version(),
        "device": engine.device_name(device),
        "driver": engine.driver(device),
        "CPU threads": str(engine.threads_for(source)),
        "precision": f"{execution.mode} {execution.precision}",
        "shapes": repr(sorted(config.shapes.items())),
        "preprocessing": repr(sorted(config.preprocessing.items())),
        "objective": _asked_for(config.objective),
        "execution": repr(execution),
        "batching": repr(config.batching),
        "properties": repr(sorted(config.properties.items())),
    }


def _asked_for(objective: ObjectiveSettings) -> str:
    if objective.latency_slo is None:
        return f"{objective.goal} alone"
    return f"{objective.goal} {objective.latency_slo} p{objective.percentile}"


def hints_of(engine: Engine, source: ModelSource) -> Seeds:
    """The choices of OpenVINO's hints for ``source`` on its only device. Compiles, and leaves threads behind that
    later loads in this process inherit (OpenVINO fact 30). Raises like Engine.load."""
    [device] = source.config.devices
    latency, throughput = (engine.hinted(source, device, hint) for hint in ("latency", "throughput"))
    return Seeds(
        (latency.streams or 1, latency.threads or 1, 1),
        (throughput.streams or 1, throughput.threads or 1, max(1, throughput.infer_requests)),
    )


def plan(
    engine: Engine,
    source: ModelSource,
    device: str,
    key: Mapping[str, str],
    hints: Seeds,
    stored: Candidate | None = None,
) -> TuningPlan:
    """The search for ``source``, with ``stored`` the winner of the last one. Reads the model but compiles nothing.
    Raises like Engine.inspect."""
    space = space_of(source.config, engine.inspect(source), engine.tunable(device, source.cpu_threads))
    return TuningPlan(source, device, key, space, goal_of(source.config), seeds_of(space, hints, stored))
