"""Which worker a process is, and the sockets of the others."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from inferd.config.variables import WORKER_VARIABLE


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Worker ``index`` of ``count``, from 0. ``folder`` has their sockets and is open to this user alone; ``secret`` is
    what they show each other."""

    index: int
    count: int
    folder: Path
    secret: str = field(default_factory=secrets.token_urlsafe, repr=False)

    @property
    def first(self) -> bool:
        """Whether it is the one that does what is done once for all of them."""
        return self.index == 0

    @property
    def others(self) -> tuple[int, ...]:
        """All workers but this one."""
        return tuple(index for index in range(self.count) if index != self.index)

    def socket(self, what: str, index: int | None = None) -> Path:
        """The socket of worker ``index``, by default of this one, for ``what``: grpc, reports or notify."""
        return self.folder / f"{self.index if index is None else index}.{what}"

    def environment(self) -> dict[str, str]:
        """What tells a process that it is this worker."""
        facts = {"index": self.index, "count": self.count, "folder": str(self.folder), "secret": self.secret}
        return {WORKER_VARIABLE: json.dumps(facts)}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """What :meth:`environment` has put there; None for a daemon that is one process."""
        if not (text := environment.get(WORKER_VARIABLE)):
            return None
        facts = json.loads(text)
        return cls(int(facts["index"]), int(facts["count"]), Path(facts["folder"]), str(facts["secret"]))
