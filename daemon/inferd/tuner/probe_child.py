"""The child of a probe: ``python -m inferd.tuner.probe_child DESCRIPTOR``, a pipe on which its ProbeJob comes
first."""

import sys
from multiprocessing.connection import Connection

from inferd.tuner.probe_process import ProbeJob, serve


def main() -> None:
    """Answer what is asked until the pipe closes."""
    pipe = Connection(int(sys.argv[1]))
    job = pipe.recv()
    if not isinstance(job, ProbeJob):
        raise AssertionError("our parent sends nothing else")
    serve(pipe, job)


if __name__ == "__main__":
    main()
