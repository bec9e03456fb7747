"""The viewer's selections: the Prometheus, its jobs, instances and models."""

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def datasource() -> DatasourceVariable:
    return DatasourceVariable("datasource").label("Data source").type("prometheus")


def job() -> QueryVariable:
    return _several("job", "label_values(inferd_build_info, job)", "Scrape jobs with instances of inferd.")


def instance() -> QueryVariable:
    query = 'label_values(inferd_build_info{job=~"$job"}, instance)'
    return _several("instance", query, "Instances of inferd, as Prometheus names its targets.")


_MODELS = 'label_values(inferd_model_ready{job=~"$job", instance=~"$instance"}, model)'


def models() -> QueryVariable:
    """Any number of models; "All" includes requests to models that don't exist."""
    return _several("model", _MODELS, "Models of these instances, including ones that are not ready.")


def model() -> QueryVariable:
    return _query("model", _MODELS, "A model of these instances.")


def _several(name: str, query: str, description: str) -> QueryVariable:
    everything = VariableOption(selected=True, text=["All"], value=["$__all"])
    return _query(name, query, description).multi(True).include_all(True).all_value(".+").current(everything)


def _query(name: str, query: str, description: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(name.title())
        .description(description)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )
