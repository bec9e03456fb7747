"""What there is to say of the models that are known: to clients, to the log, and what of it is let go of."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from inferd.catalog.served import IndexEntry, Served
from inferd.disclosure import without_host_paths
from inferd.errors import InferdError, ModelUnavailable, UnknownModel, UnknownVersion
from inferd.lifecycle import ModelState

Models = Mapping[str, Mapping[int, Served]]


def index_of(models: Models, broken: Mapping[str, str]) -> tuple[IndexEntry, ...]:
    """Every version of ``models`` and those that are ``broken``, with why, by name and version; as clients read it."""
    entries = [
        IndexEntry(name, str(number), served.shown, without_host_paths(served.said), served.wanted)
        for name, versions in models.items()
        for number, served in sorted(versions.items())
    ]
    entries += [
        IndexEntry(name, "", ModelState.UNAVAILABLE, without_host_paths(reason))
        for name, reason in broken.items()
        if not models.get(name)
    ]
    return tuple(sorted(entries, key=lambda e: (e.name, int(e.version or 0))))


def unanswered(models: Models, broken: Mapping[str, str], name: str, version: str) -> InferdError:
    """Why nothing answers for ``version`` of ``name``, any version where that is empty."""
    if name not in models and name not in broken:
        return UnknownModel(name, {**models, **broken})
    served = models.get(name, {})
    if version:
        one = next((s for number, s in served.items() if str(number) == version), None)
        if one is None:
            return UnknownVersion(name, version, sorted(served))
        return ModelUnavailable(name, f"{one.shown.value.lower()} in version {version}", one.ailing or one.reason)
    states = {s.shown for s in served.values()}
    state = ModelState.LOADING if ModelState.LOADING in states else ModelState.UNAVAILABLE
    reason = broken.get(name) or next((why for s in served.values() if (why := s.ailing or s.reason)), "")
    return ModelUnavailable(name, state.value.lower(), reason)


def still_serving(routes: Iterable[tuple[str, str]], name: str) -> dict[str, list[int]]:
    """For the log: the versions of ``name`` among all that answer, by name and version; another has failed."""
    answering = sorted(int(version) for of, version in routes if of == name and version)
    return {"still_serving": answering} if answering else {}


def forget(
    versions: Collection[tuple[str, str]],
    held: Collection[str],
    loads: Counter[tuple[str, str]],
    rollbacks: Counter[tuple[str, str, str]],
) -> None:
    """Take out of the counts what is of ``versions`` and of their models, unless these are ``held``."""
    for key in [key for key in rollbacks if key[:2] in versions]:
        del rollbacks[key]
    gone = {name for name, _ in versions}.difference(held)
    for model in [model for model in loads if model[0] in gone]:
        del loads[model]
