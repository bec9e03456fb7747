"""The model versions being served, and how one takes the place of another."""

from inferd.catalog.catalog import Catalog
from inferd.catalog.deployment import Deployment
from inferd.catalog.index import IndexEntry
from inferd.catalog.loader import CatalogLimits
from inferd.catalog.model_version import ModelVersion
from inferd.catalog.settings import cpu_parts, hangs_of, rules_of, source_of
from inferd.catalog.traffic_split import TrafficSplit

__all__ = [
    "Catalog",
    "CatalogLimits",
    "Deployment",
    "IndexEntry",
    "ModelVersion",
    "TrafficSplit",
    "cpu_parts",
    "hangs_of",
    "rules_of",
    "source_of",
]
