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
    """Worker ``index`` of ``count``, from 0. ``folder`` holds the sockets and is private to this user; workers
    authenticate to each other with ``secret``."""

    index: int
    count: int
    folder: Path
    secret: str = field(default_factory=secrets.token_urlsafe, repr=False)

    @property
    def first(self) -> bool:
        """Whether it is the worker that does the tasks needed only once."""
        return self.index == 0

    @property
    def others(self) -> tuple[int, ...]:
        """All workers but this one."""
        return tuple(index for index in range(self.count) if index != self.index)

    def socket(self, what: str, index: int | None = None) -> Path:
        """The socket of worker ``index``, by default of this one, for ``what``: grpc, reports or notify."""
        return self.folder / f"{self.index if index is None else index}.{what}"

    def environment(self) -> dict[str, str]:
        """The variables that tell a process that it is this worker."""
        facts = {"index": self.index, "count": self.count, "folder": str(self.folder), "secret": self.secret}
        return {WORKER_VARIABLE: json.dumps(facts)}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """The identity in the variables of :meth:`environment`; None for a daemon of a single process."""
        if not (text := environment.get(WORKER_VARIABLE)):
            return None
        facts = json.loads(text)
        return cls(int(facts["index"]), int(facts["count"]), Path(facts["folder"]), str(facts["secret"]))
