"""Links between the dashboards, which keep the selection and the time range."""

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.models.dashboard import DashboardLinkType

FLEET, MODEL, HOST = "inferd-fleet", "inferd-model", "inferd-host"
"""Fixed uids: links and bookmarks survive new versions of a dashboard."""

_TITLES = {FLEET: "inferd / fleet", MODEL: "inferd / model", HOST: "inferd / host"}


def others(here: str) -> list[DashboardLink]:
    """Links at the top of the dashboard ``here``."""
    return [
        DashboardLink(title)
        .type(DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .icon("dashboard")
        .include_vars(True)
        .keep_time(True)
        for uid, title in _TITLES.items()
        if uid != here
    ]


def to_model() -> DashboardLink:
    """A link from a series with the label model to that model."""
    return _from_series("Open this model", MODEL, "model", ("datasource", "job", "instance"))


def to_host() -> DashboardLink:
    """A link from a series with the label instance to that instance."""
    return _from_series("Open this instance", HOST, "instance", ("datasource", "job"))


def _from_series(title: str, uid: str, label: str, kept: tuple[str, ...]) -> DashboardLink:
    carried = "&".join(f"${{{name}:queryparam}}" for name in kept)
    return DashboardLink(title).url(f"/d/{uid}?var-{label}=${{__field.labels.{label}}}&{carried}&${{__url_time_range}}")
