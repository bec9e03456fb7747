"""The child process of a probe: ``python -m inferd.tuner.probe_child DESCRIPTOR``, a pipe that first carries its
ProbeJob."""

import sys
from multiprocessing.connection import Connection

from inferd.tuner.probe_process import ProbeJob, serve


def main() -> None:
    """Answer queries until the pipe closes."""
    pipe = Connection(int(sys.argv[1]))
    job = pipe.recv()
    if not isinstance(job, ProbeJob):
        raise AssertionError("our parent sends nothing else")
    serve(pipe, job)


if __name__ == "__main__":
    main()
