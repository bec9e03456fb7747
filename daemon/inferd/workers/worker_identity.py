"""Which worker a process is, and the sockets of the others."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from inferd.config.variables import WORKER_VARIABLE


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Worker ``index`` of ``count``, from 0. ``folder`` holds the sockets and is private to this user; workers
    authenticate to each other with ``secret``. ``supervisor`` is the process that made it."""

    index: int
    count: int
    folder: Path
    secret: str = field(default_factory=secrets.token_urlsafe, repr=False)
    supervisor: int = field(default_factory=os.getpid, repr=False)

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

    @property
    def orphaned(self) -> bool:
        """Whether the supervisor is gone."""
        return os.getppid() != self.supervisor

    def clean_up(self) -> None:
        """Remove the folder if the supervisor is gone and can't."""
        if self.orphaned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """The variables that tell a process that it is this worker."""
        facts = {"index": self.index, "count": self.count, "folder": str(self.folder), "secret": self.secret}
        facts["supervisor"] = self.supervisor
        return {WORKER_VARIABLE: json.dumps(facts)}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """The identity in the variables of :meth:`environment`; None for a daemon of a single process."""
        if not (text := environment.get(WORKER_VARIABLE)):
            return None
        facts = json.loads(text)
        index, count, supervisor = (int(facts[name]) for name in ("index", "count", "supervisor"))
        return cls(index, count, Path(facts["folder"]), str(facts["secret"]), supervisor)
