"""Which model version answers a request, and why the others don't."""

from collections.abc import Awaitable, Callable, Iterable

from inferd.catalog.index import IndexEntry, index_of, routing_error
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.errors import ModelUnavailable, UnknownModel
from inferd.lifecycle import ModelState

# Who answers: a version, and what serves it at present.
Route = tuple[ModelVersion, Deployment]


class Routes:
    """The table of model versions by name and version, and the routes to those that answer. ``changed`` is awaited
    after each change of a state."""

    def __init__(self, changed: Callable[[], Awaitable[None]]) -> None:
        self._changed = changed
        self._models: dict[str, dict[int, ModelVersion]] = {}
        self._broken: dict[str, str] = {}
        self._routes: dict[tuple[str, str], Route] = {}
        self._sole: Route | None = None
        self._index: tuple[IndexEntry, ...] = ()

    def resolve(self, name: str, version: str) -> Route:
        """The version that answers the next request; an empty ``version`` means the newest ready one. While a candidate
        is tried, it gets its share.

        Raises UnknownModel, UnknownVersion or ModelUnavailable.
        """
        route = self.find(name, version)
        model_version, _ = route
        if (split := model_version.split) is not None:
            return model_version, split.pick()
        if (canary := model_version.canary) is None or version:
            return route
        deployment = canary.split.pick()
        return (canary.model_version, deployment) if deployment is canary.split.candidate else route

    def find(self, name: str, version: str) -> Route:
        """The version that ``version`` names, even while a candidate is tried next to it. Raises as :meth:`resolve`."""
        route = self._routes.get((name, version))
        if route is None:
            raise routing_error(self._models, self._broken, name, version)
        return route

    @property
    def sole(self) -> Route | None:
        """The version that answers every request that is answered; None if it depends on the request."""
        route = self._sole
        return route if route is not None and route[0].split is None and route[0].canary is None else None

    def versions(self, name: str) -> list[int]:
        """The versions of ``name`` that are known, ascending; raises UnknownModel."""
        if name not in self._models and name not in self._broken:
            raise UnknownModel(name)
        return sorted(self._models.get(name, {}))

    def ready(self, name: str, version: str) -> bool:
        """Whether that version answers; raises UnknownModel or UnknownVersion."""
        try:
            self.find(name, version)
        except ModelUnavailable:
            return False
        return True

    def index(self) -> tuple[IndexEntry, ...]:
        """Every version known and every model that can't be read, by name and version. Any thread may ask."""
        return self._index

    def serving(self) -> Iterable[Route]:
        """The versions that answer, each once."""
        return [route for (_, version), route in sorted(self._routes.items()) if version]

    def loaded(self) -> Iterable[Route]:
        """The versions that may still answer requests: live ones, and those being unloaded."""
        return [
            (s, s.deployment)
            for versions in self._models.values()
            for s in versions.values()
            if s.deployment is not None
        ]

    def reroute(self) -> None:
        """Route by the states as they are now."""
        routes = {}
        for name, versions in self._models.items():
            for number in sorted(versions):
                model = versions[number]
                if model.effective_state is ModelState.READY and model.deployment is not None:
                    routes[name, str(number)] = (model, model.deployment)
                    if not model.is_canary:
                        routes[name, ""] = (model, model.deployment)
        self._routes = routes
        alone = len(self._models) == 1 and not self._broken and len(next(iter(self._models.values()))) == 1
        self._sole = next(iter(routes.values())) if alone and routes else None

    async def publish(self) -> None:
        """Let others see a change of state."""
        self._index = index_of(self._models, self._broken)
        await self._changed()

    async def set_health(
        self, model: ModelVersion, deployment: Deployment, unready_reason: str, degraded_reason: str = ""
    ) -> None:
        """Stop taking requests for ``model`` because of ``unready_reason``, or take them again if that is empty. Show
        ``degraded_reason``.

        Changes nothing if ``deployment`` no longer serves the model.
        """
        if model.deployment is deployment and (model.unready_reason, model.degraded_reason) != (
            unready_reason,
            degraded_reason,
        ):
            model.unready_reason, model.degraded_reason = unready_reason, degraded_reason
            self.reroute()
            await self.publish()

    def predecessor(self, model: ModelVersion, old: ModelVersion | None) -> ModelVersion | None:
        """The version whose requests ``model``, which replaces ``old``, will get; None if none answers."""
        if old is not None and old.effective_state is ModelState.READY:
            return old
        route = self._routes.get((model.name, ""))
        return route[0] if route is not None and route[0].version < model.version else None
