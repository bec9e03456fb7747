"""A wall clock of a daemon's own, which a test sets: no machine's time has to be changed for that."""

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *ahead;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("WALL_CLOCK");
    int file = name ? open(name, O_RDONLY) : -1;
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file < 0)
        return;
    void *seen = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    ahead = seen == MAP_FAILED ? 0 : seen;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!real)
        begin();
    int failed = real(clock, at);
    if (!failed && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""

MISSING = "" if shutil.which("cc") else "there is no C compiler (cc) here"
"""Why there can be no such clock on this machine."""


class WallClock:
    """Shows processes that have its ``environment`` the time, and so many seconds more as :meth:`jump` says.

    Only what is read is changed, in the C library; timers and waits of the kernel go on as they are.
    """

    def __init__(self, folder: Path) -> None:
        source, library, offset = folder / "wall_clock.c", folder / "wall_clock.so", folder / "offset"
        source.write_text(_SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        offset.write_bytes(bytes(8))
        with offset.open("r+b") as file:
            self._ahead = mmap.mmap(file.fileno(), 8)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(offset)}

    def jump(self, seconds: int) -> None:
        """Be ``seconds`` ahead of the machine's clock from now on, or behind it."""
        self._ahead[:] = struct.pack("q", seconds)
