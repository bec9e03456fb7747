"""The model versions being served, and how one takes the place of another."""

from inferd.catalog.catalog import Catalog
from inferd.catalog.lives import CatalogLimits
from inferd.catalog.rules import cpu_parts, hangs_of, rules_of, source_of
from inferd.catalog.served import Beside, IndexEntry, Live, Served

__all__ = [
    "Beside",
    "Catalog",
    "CatalogLimits",
    "IndexEntry",
    "Live",
    "Served",
    "cpu_parts",
    "hangs_of",
    "rules_of",
    "source_of",
]
