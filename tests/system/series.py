"""All that one scrape says, to be asked for sums over labels."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.system.daemon import Daemon

Labels = tuple[tuple[str, str], ...]
"""In alphabetical order."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values by name and labels."""

    values: Mapping[tuple[str, Labels], float]

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """``name`` summed over all labels but these, by the values of these; what is 0 is left out."""
        sums: dict[tuple[str, ...], float] = {}
        for (found, pairs), value in self.values.items():
            if found == name and value:
                key = tuple(dict(pairs)[label] for label in labels)
                sums[key] = sums.get(key, 0) + value
        return sums

    def total(self, name: str, **labels: str) -> float:
        """``name`` summed over all series that have these labels among others."""
        return sum(v for (found, pairs), v in self.values.items() if found == name and labels.items() <= set(pairs))

    def having(self, **labels: str) -> set[tuple[str, Labels]]:
        """The series that have these labels among others."""
        return {(name, pairs) for name, pairs in self.values if labels.items() <= set(pairs)}

    def models(self) -> set[str]:
        """All values of the label `model`."""
        return {value for _, pairs in self.values for label, value in pairs if label == "model"}


def scrape(daemon: Daemon) -> Series:
    """What the daemon says now."""
    status, body = daemon.get("/metrics")
    assert status == 200, body
    families = text_string_to_metric_families(body)
    return Series({(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples})
