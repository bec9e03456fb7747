"""The child of a probe: ``python -m inferd.tuning.probe_child DESCRIPTOR``, a pipe on which its Job comes first."""

import sys
from multiprocessing.connection import Connection

from inferd.tuning.probe_process import Job, serve


def main() -> None:
    """Answer what is asked until the pipe closes."""
    pipe = Connection(int(sys.argv[1]))
    job = pipe.recv()
    if not isinstance(job, Job):
        raise AssertionError("our parent sends nothing else")
    serve(pipe, job)


if __name__ == "__main__":
    main()
