"""What is known of the models, for clients and for the log, and when counts of gone versions are dropped."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from inferd.deployment.model_version import ModelVersion
from inferd.disclosure import without_host_paths
from inferd.errors import InferdError, ModelUnavailable, UnknownModel, UnknownVersion
from inferd.lifecycle import ModelState


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the repository index; ``version`` is empty for a model that could not be read at all.
    ``desired`` unless it was unloaded on purpose."""

    name: str
    version: str
    state: ModelState
    reason: str
    desired: bool = True


Models = Mapping[str, Mapping[int, ModelVersion]]


def index_of(models: Models, broken: Mapping[str, str]) -> tuple[IndexEntry, ...]:
    """Every version of ``models``, and the ``broken`` models with their errors, as clients read it."""
    entries = [
        IndexEntry(
            name,
            str(number),
            model_version.effective_state,
            without_host_paths(model_version.status_text),
            model_version.desired,
        )
        for name, versions in models.items()
        for number, model_version in sorted(versions.items())
    ]
    entries += [
        IndexEntry(name, "", ModelState.UNAVAILABLE, without_host_paths(reason))
        for name, reason in broken.items()
        if not models.get(name)
    ]
    return tuple(sorted(entries, key=lambda e: (e.name, int(e.version or 0))))


def routing_error(models: Models, broken: Mapping[str, str], name: str, version: str) -> InferdError:
    """Why ``version`` of ``name`` does not answer; an empty ``version`` means any."""
    if name not in models and name not in broken:
        return UnknownModel(name, {**models, **broken})
    known = models.get(name, {})
    if version:
        one = next((s for number, s in known.items() if str(number) == version), None)
        if one is None:
            return UnknownVersion(name, version, sorted(known))
        return ModelUnavailable(
            name, f"{one.effective_state.value.lower()} in version {version}", one.unready_reason or one.reason
        )
    states = {s.effective_state for s in known.values()}
    state = ModelState.LOADING if ModelState.LOADING in states else ModelState.UNAVAILABLE
    reason = broken.get(name) or next((why for s in known.values() if (why := s.unready_reason or s.reason)), "")
    return ModelUnavailable(name, state.value.lower(), reason)


def still_serving(routes: Iterable[tuple[str, str]], name: str) -> dict[str, list[int]]:
    """Log fields: the versions of ``name`` that still serve after another one failed."""
    answering = sorted(int(version) for of, version in routes if of == name and version)
    return {"still_serving": answering} if answering else {}


def forget(
    versions: Collection[tuple[str, str]],
    held: Collection[str],
    loads: Counter[tuple[str, str]],
    rollbacks: Counter[tuple[str, str, str]],
) -> None:
    """Drop the counts of ``versions`` and of their models, unless a model is still ``held``."""
    for key in [key for key in rollbacks if key[:2] in versions]:
        del rollbacks[key]
    gone = {name for name, _ in versions}.difference(held)
    for model in [model for model in loads if model[0] in gone]:
        del loads[model]
