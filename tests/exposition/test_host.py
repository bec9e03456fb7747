"""CPU quota, pressure and memory in a scrape are the kernel's figures, and no more."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.exposition.host import ConnectionCollector, HostCollector
from inferd.metrics import instruments
from inferd.metrics.instruments import Instrument
from tests.cgroups import machine, under_quota
from tests.metrics.scraped import Scrape, scraped

THREADS = ("inferd_cpu_threads",)
PERIODS = ("inferd_cpu_quota_periods_total",)
THROTTLED = ("inferd_cpu_throttled_periods_total",)
SECONDS = ("inferd_cpu_throttled_seconds_total",)
MEMORY = ("inferd_memory_limit_bytes",)


def seen(
    root: Path, membership: str, groups: Mapping[str, str] | None = None, proc: Mapping[str, str] | None = None
) -> Scrape:
    machine(root, membership, groups or {}, proc)
    return scraped(HostCollector(4, root))


def stat(periods: int, throttled: int, microseconds: int) -> str:
    return f"usage_usec 99\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {microseconds}\n"


def pressure(some: int, full: int) -> str:
    lines = ((kind, total) for kind, total in (("some", some), ("full", full)))
    return "".join(f"{kind} avg10=1.25 avg60=0.10 avg300=0.00 total={total}\n" for kind, total in lines)


# -- what there is not ------------------------------------------------------------


def test_on_a_kernel_that_tells_nothing_only_our_own_threads_are_known(tmp_path: Path) -> None:
    assert scraped(HostCollector(4, tmp_path)) == {THREADS: 4}


@pytest.mark.parametrize(
    "instrument",
    [
        instruments.CPU_THREADS,
        instruments.CPU_PERIODS,
        instruments.CPU_THROTTLED_PERIODS,
        instruments.CPU_THROTTLED_SECONDS,
        instruments.PRESSURE,
        instruments.MEMORY_LIMIT,
    ],
    ids=lambda i: i.name,
)
def test_each_family_is_the_declared_one(tmp_path: Path, instrument: Instrument) -> None:
    families = {family.name: family for family in HostCollector(4, tmp_path).collect()}
    assert len(families) == 6
    assert (families[instrument.name].type, families[instrument.name].documentation) == (
        instrument.kind,
        instrument.help,
    )


@given(membership=st.text(max_size=60), text=st.text(max_size=80))
def test_malformed_files_never_raise_and_are_left_out(membership: str, text: str) -> None:
    files = {"cgroup.type": "domain\n", "cpu.stat": f"nr_periods {text}\n", "io.pressure": f"some total=x{text}\n"}
    with tempfile.TemporaryDirectory() as root:
        found = seen(Path(root), f"0::/\n{membership}", files, {"pressure/cpu": text})
    assert ("inferd_pressure_stalled_seconds_total", "some", "io") not in found
    assert found[THREADS] == 4


# -- the CPU quota ----------------------------------------------------------------


def test_periods_and_seconds_are_those_of_ones_own_quota(tmp_path: Path) -> None:
    files = {"a/cpu.max": "100000 100000\n", "a/cpu.stat": stat(40, 10, 2_500_000)}
    found = seen(tmp_path, "0::/a\n", files)
    assert (found[PERIODS], found[THROTTLED], found[SECONDS]) == (40, 10, 2.5)


def test_where_an_ancestor_has_the_tighter_quota_it_is_what_throttles(tmp_path: Path) -> None:
    files = {
        "a/cpu.max": "100000 100000\n",
        "a/cpu.stat": stat(40, 30, 1_000_000),
        "a/b/cpu.max": "400000 100000\n",
        "a/b/cpu.stat": stat(20, 0, 0),
        "a/b/c/cpu.max": "max 100000\n",
        "a/b/c/cpu.stat": stat(0, 0, 0),
    }
    found = seen(tmp_path, "0::/a/b/c\n", files)
    assert (found[PERIODS], found[THROTTLED], found[SECONDS]) == (40, 30, 1.0)


def test_of_equal_quotas_the_nearest_is_shown(tmp_path: Path) -> None:
    files = {f"{group}/cpu.max": "100000 100000\n" for group in ("a", "a/b")}
    files |= {"a/cpu.stat": stat(40, 30, 1), "a/b/cpu.stat": stat(20, 5, 0)}
    assert seen(tmp_path, "0::/a/b\n", files)[THROTTLED] == 5


def test_without_a_quota_ones_own_group_says_that_it_was_never_throttled(tmp_path: Path) -> None:
    files = {"cpu.stat": stat(7, 7, 7), "a/cpu.max": "max 100000\n", "a/cpu.stat": stat(0, 0, 0)}
    found = seen(tmp_path, "0::/a\n", files)
    assert (found[PERIODS], found[THROTTLED], found[SECONDS]) == (0, 0, 0)


def test_a_group_that_counts_no_periods_shows_none(tmp_path: Path) -> None:
    assert set(seen(tmp_path, "0::/\n", {"cpu.stat": "usage_usec 99\nuser_usec 98\n"})) == {THREADS}


def test_version_one_counts_in_nanoseconds(tmp_path: Path) -> None:
    files = {
        "cpu/a/cpu.cfs_quota_us": "50000\n",
        "cpu/a/cpu.cfs_period_us": "100000\n",
        "cpu/a/cpu.stat": "nr_periods 40\nnr_throttled 10\nthrottled_time 2500000000\nnr_bursts 0\n",
    }
    found = seen(tmp_path, "4:cpu,cpuacct:/a\n", files)
    assert (found[PERIODS], found[THROTTLED], found[SECONDS]) == (40, 10, 2.5)


def test_beside_version_one_version_two_has_no_say_in_periods(tmp_path: Path) -> None:
    files = {
        "unified/cgroup.controllers": "",
        "unified/cpu.stat": "usage_usec 99\n",
        "cpu/cpu.stat": "nr_periods 3\nnr_throttled 2\nthrottled_time 1000000000\n",
    }
    assert seen(tmp_path, "0::/\n1:cpu:/\n", files)[THROTTLED] == 2


SAMPLES_UNDER_LOAD = """
import json
from inferd.exposition.host import ConnectionCollector, HostCollector

collector = HostCollector(1)
while True:
    samples = {sample.name: sample.value for family in collector.collect() for sample in family.samples}
    if samples.get("inferd_cpu_throttled_periods_total", 0) >= 3:
        break
print(json.dumps(samples))
"""


def test_a_real_group_that_is_throttled_says_so() -> None:
    with under_quota(0.3) as command:
        done = subprocess.run(
            [*command, sys.executable, "-c", SAMPLES_UNDER_LOAD],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
    found = json.loads(done.stdout)
    assert found[PERIODS[0]] >= found[THROTTLED[0]] >= 3
    assert found[SECONDS[0]] > 0


# -- pressure ---------------------------------------------------------------------


def stalled(found: Scrape) -> Scrape:
    """Kind and resource -> seconds."""
    return {key[1:]: value for key, value in found.items() if key[0] == "inferd_pressure_stalled_seconds_total"}


def test_pressure_is_that_of_ones_own_group(tmp_path: Path) -> None:
    files = {"a/cgroup.type": "domain\n", "a/cpu.pressure": pressure(2_000_000, 500_000)}
    files |= {f"a/{name}.pressure": pressure(3_000_000, 1_250_000) for name in ("memory", "io")}
    found = seen(tmp_path, "0::/a\n", files, {f"pressure/{name}": pressure(9, 9) for name in ("cpu", "memory", "io")})
    assert stalled(found) == {
        ("some", "cpu"): 2,
        ("full", "cpu"): 0.5,
        ("some", "memory"): 3,
        ("full", "memory"): 1.25,
        ("some", "io"): 3,
        ("full", "io"): 1.25,
    }


def test_where_the_group_has_none_it_is_the_machines_which_never_runs_out_of_all_cpus(tmp_path: Path) -> None:
    proc = {"pressure/cpu": pressure(1_000_000, 0), "pressure/io": pressure(4_000_000, 3_000_000)}
    files = {"a/cgroup.type": "domain\n", "a/memory.pressure": pressure(0, 0), "cpu.pressure": pressure(7, 7)}
    assert stalled(seen(tmp_path, "0::/a\n", files, proc)) == {
        ("some", "cpu"): 1,
        ("some", "io"): 4,
        ("full", "io"): 3,
        ("some", "memory"): 0,
        ("full", "memory"): 0,
    }


def test_the_whole_machines_group_is_the_machine(tmp_path: Path) -> None:
    files = {"cpu.pressure": pressure(7, 7)}
    proc = {"pressure/cpu": pressure(1_000_000, 0)}
    assert stalled(seen(tmp_path, "0::/\n", files, proc)) == {("some", "cpu"): 1}


def test_an_old_kernel_knows_no_full_for_the_cpu(tmp_path: Path) -> None:
    files = {"a/cgroup.type": "domain\n", "a/cpu.pressure": pressure(2_000_000, 0).splitlines()[0]}
    assert stalled(seen(tmp_path, "0::/a\n", files)) == {("some", "cpu"): 2}


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_microseconds_come_out_as_seconds(some: int, full: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        found = seen(Path(root), "0::/\n", proc={"pressure/io": pressure(some, full)})
    assert stalled(found) == {("some", "io"): some / 10**6, ("full", "io"): full / 10**6}


# -- memory -----------------------------------------------------------------------


def test_the_memory_limit_is_shown_where_there_is_one(tmp_path: Path) -> None:
    files = {"memory.max": "max\n", "a/memory.max": "1073741824\n"}
    assert seen(tmp_path, "0::/a\n", files)[MEMORY] == 1073741824


def test_no_memory_limit_shows_nothing(tmp_path: Path) -> None:
    assert MEMORY not in seen(tmp_path, "0::/a\n", {"a/memory.max": "max\n"})


def test_the_real_machine_is_read_without_a_word_of_complaint() -> None:
    found = scraped(HostCollector(4))
    assert found[THREADS] == 4
    assert all(value >= 0 for value in found.values())


TABLE = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1\n"


def test_connections_are_those_established_at_the_port(tmp_path: Path) -> None:
    here, elsewhere, listening = "0100007F:1F41", "0100007F:1F42", ("0100007F:1F41", "00000000:0000", "0A")
    rows = [listening, (here, "0100007F:C350", "01"), (here, "0100007F:C351", "01"), (here, "0100007F:C352", "06")]
    # Of a client on this machine, and of another port.
    rows += [("0100007F:C350", here, "01"), (elsewhere, "0100007F:C353", "01")]
    six = ("00000000000000000000000001000000:1F41", "00000000000000000000000001000000:C350", "01")
    for name, table in (("tcp", rows), ("tcp6", [six])):
        file = tmp_path / "proc/self/net" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TABLE + "".join(ROW.format(local=a, remote=b, state=state) for a, b, state in table))
    assert _connections(ConnectionCollector(lambda: 0x1F41, 16, tmp_path)) == {
        "inferd_connections": [3],
        "inferd_connections_limit": [16],
    }


def test_without_the_kernels_table_there_is_no_count(tmp_path: Path) -> None:
    found = _connections(ConnectionCollector(lambda: 0x1F41, 16, tmp_path))
    assert found == {"inferd_connections": [], "inferd_connections_limit": [16]}


def _connections(collector: ConnectionCollector) -> dict[str, list[float]]:
    return {family.name: [sample.value for sample in family.samples] for family in collector.collect()}
