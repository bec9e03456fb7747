"""Fuzzes the codec with mutated requests, in ``--processes`` processes.

    python -m benchmarks.fuzz --executions 10000000

Each execution puts one mutated request through every step before the queue (parse, parameters, sequence, inputs, rows,
outputs, encode). Inputs with a new kind of response join the corpus of their process and, with ``--keep``, the kept
corpus. Prints the number of executions, their rate and the findings; exits with 1 if there are any.
"""

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random

from tests.fuzz import codec_target, corpus_files
from tests.fuzz.mutation import mutated

_REPORT_EVERY = 50_000
_MOST_KEPT_BYTES = 512
_MOST_FINDINGS = 20
_MOST_IN_CORPUS = 5000

# Executions since the last report, inputs with a new kind of response, and findings: a traceback and its input.
Report = tuple[int, list[bytes], list[tuple[str, bytes]]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="add what is new to tests/fuzz/corpus")
    given = parser.parse_args(arguments)
    spawn = multiprocessing.get_context("spawn")
    reports: Queue[Report] = spawn.Queue()
    each = -(-given.executions // given.processes)
    workers = [
        spawn.Process(target=_work, args=(given.seed + place, each, reports), daemon=True)
        for place in range(given.processes)
    ]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    done, kinds, findings = 0, 0, 0
    while done < each * given.processes:
        count, new, found = reports.get()
        done, kinds, findings = done + count, kinds + len(new), findings + len(found)
        for data in new if given.keep else ():
            if len(data) <= _MOST_KEPT_BYTES:
                corpus_files.keep(data)
        for trace, data in found:
            print(f"FOUND with {data!r}\n{trace}", flush=True)
        rate = done / (time.monotonic() - begun)
        print(f"{done:>12,} executions  {rate:>9,.0f}/s  {kinds} new kinds  {findings} findings", flush=True)
    for worker in workers:
        worker.join()
    return 1 if findings else 0


def _work(seed: int, executions: int, reports: "Queue[Report]") -> None:
    chance, corpus = Random(seed), corpus_files.read()
    seen: set[str] = set()
    # The responses to the corpus are not new.
    for data in corpus:
        for which in range(len(codec_target.SIGNATURES)):
            seen.add(codec_target.exercise(data, which))
    done, since, findings = 0, 0, 0
    new: list[bytes] = []
    found: list[tuple[str, bytes]] = []
    while done < executions:
        data = mutated(chance, corpus)
        which = int(chance.random() * len(codec_target.SIGNATURES))
        try:
            kind = codec_target.exercise(data, which)
            if done % 16 == 0:
                codec_target.parse_any(data, done // 16)
        except Exception:
            findings += 1
            if findings <= _MOST_FINDINGS:
                found.append((f"signature {which}\n{traceback.format_exc()}", data))
        else:
            if kind not in seen and len(corpus) < _MOST_IN_CORPUS:
                seen.add(kind)
                corpus.append(data)
                new.append(data)
        done, since = done + 1, since + 1
        if since == _REPORT_EVERY or done == executions:
            reports.put((since, new, found))
            since, new, found = 0, [], []


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
