"""Runs many silero-vad sequences at once, whose state the server keeps, then kills half of their clients.

    python -m benchmarks.sequences --out build/bench

Client processes send ``--sequences`` streams of ``--seconds`` of audio, each with its own synthesised voice. Every
probability must be within 1e-4 of what onnxruntime computes for that sequence alone. Then all sequences start again and
every other client process is killed: the gauge inferd_sequences must fall to the number of survivors within the idle
time-out, and to 0 when those have ended. The survivors' responses are compared too.

Prints the figures, writes sequences.json to ``--out`` and exits with 1 when a check fails.
"""

import argparse
import asyncio
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import ROOT
from tests.system.daemon import Daemon
from tests.system.wire import connect, counts, method

from inferd._pb import open_inference_pb2 as pb
from inferd.demo import models

MODEL = "silero-vad"
RATE, FRAME, CONTEXT = 16_000, 512, 64
DIFFERENCE_BAR = 1e-4
SLACK = 1.0
"""Seconds beyond the idle time-out, which runs from a client's last frame; that may be answered after its death."""
WINDOW = 4
"""Frames of a sequence in flight at a time."""

Signal = npt.NDArray[np.float32]

_FORMANTS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
"""Of five vowels, in Hz."""
_SYLLABLES = 6
"""A second."""


def main() -> int:
    """Run both parts, print, write; the exit status."""
    options = _options()
    models.fetch(options.models, print)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        model = _repository(Path(scratch) / "models", options)
        # All frames in flight may have to wait at the same time.
        flags = ["--cache-dir", f"{scratch}/cache", "--queue-max-length", str(2 * WINDOW * options.sequences)]
        with Daemon(Path(scratch) / "models", *flags) as daemon:
            _live(daemon)
            clients = Clients(daemon.grpc, model, options)
            try:
                report = _parity(daemon, clients, options) | _kill_half(daemon, clients, options)
            finally:
                clients.kill()
    misses = _misses(report, options)
    report |= {"options": {key: str(value) for key, value in vars(options).items()}, "missed": misses}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sequences.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sequences", type=int, default=200, help="sequences at once, a stream each")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio in each sequence")
    parser.add_argument("--processes", type=int, default=4, help="client processes; every other one is killed")
    parser.add_argument("--idle-timeout", type=float, default=60.0, help="seconds after which an idle sequence ends")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="repository of the demo models")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of sequences.json")
    options = parser.parse_args()
    if options.processes < 2 or options.sequences % options.processes:
        parser.error("--sequences must be a multiple of --processes, and those at least 2")
    return options


def _repository(root: Path, options: argparse.Namespace) -> Path:
    """silero-vad in ``root``, its state carried by the server; the file of the model."""
    file = root / MODEL / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    shutil.copyfile(options.models / MODEL / "1" / "model.onnx", file)
    (root / MODEL / "model.toml").write_text(
        "[batching]\nmax_size = 64\n\n"
        f"[sequences]\nmax_active = 1024\nidle_timeout = {options.idle_timeout}\n\n"
        '[sequences.state.state]\noutput = "stateN"\nbatch_axis = 1\n'
    )
    return file


# -- the two parts ----------------------------------------------------------------


def _parity(daemon: Daemon, clients: "Clients", options: argparse.Namespace) -> dict[str, Any]:
    """Play all sequences to their ends; the largest difference, and responses a second."""
    frames = options.sequences * _frames(options.seconds)
    print(f"{options.sequences} sequences of {options.seconds:g} s, {frames} frames in all", flush=True)
    started = time.monotonic()
    clients.say("play")
    outcome = clients.hear(lambda: print(f"  {_answered(daemon)} of {frames} frames answered", flush=True))
    took = time.monotonic() - started
    print(f"largest difference from onnxruntime  {outcome.difference:.1e} (bar {DIFFERENCE_BAR:.0e})")
    print(f"probabilities                        {outcome.low:.3f} to {outcome.high:.3f}")
    print(f"frames a second                      {frames / took:.0f}, for {took:.1f} s", flush=True)
    return {
        "difference": outcome.difference,
        "lowest_probability": outcome.low,
        "highest_probability": outcome.high,
        "frames": frames,
        "frames_per_second": frames / took,
    }


def _kill_half(daemon: Daemon, clients: "Clients", options: argparse.Namespace) -> dict[str, Any]:
    """Kill every other client in mid-stream; seconds until the state of its sequences, then all state, is gone."""
    patience = options.idle_timeout + 60
    goal = _answered(daemon) + 10 * options.sequences
    clients.say("play until told")
    started = _seconds_until(lambda: _live(daemon) == options.sequences and _answered(daemon) > goal, patience)
    if started > patience:
        raise SystemExit(f"{_live(daemon)} of {options.sequences} sequences are live after {started:.0f} s")
    survivors = options.sequences - clients.kill_every_other()
    print(f"{options.sequences} sequences live, the clients of {options.sequences - survivors} killed", flush=True)
    returned = _seconds_until(lambda: _live(daemon) <= survivors, patience)
    print(
        f"killed clients' state returned in    {returned:.1f} s (idle time-out {options.idle_timeout:g} s)", flush=True
    )
    clients.say("end")
    outcome = clients.hear()
    emptied = _seconds_until(lambda: _live(daemon) == 0, patience)
    print(f"survivors' after their last answers  {emptied:.1f} s")
    print(f"survivors' largest difference        {outcome.difference:.1e} (bar {DIFFERENCE_BAR:.0e})", flush=True)
    return {
        "survivors": survivors,
        "survivors_difference": outcome.difference,
        "killed_state_returned_seconds": returned,
        "survivors_state_returned_seconds": emptied,
    }


def _misses(report: dict[str, Any], options: argparse.Namespace) -> list[str]:
    found = [
        f"{key} is {report[key]:.1e}, above {DIFFERENCE_BAR:.0e}"
        for key in ("difference", "survivors_difference")
        if not report[key] <= DIFFERENCE_BAR
    ]
    if not report["lowest_probability"] < 0.5 < report["highest_probability"]:
        found.append("the audio holds not both speech and none, so the comparison says little")
    found += [
        f"{key} is {report[key]:.1f}, above the idle time-out of {options.idle_timeout:g}"
        for key in ("killed_state_returned_seconds", "survivors_state_returned_seconds")
        if report[key] > options.idle_timeout + SLACK
    ]
    return found


def _answered(daemon: Daemon) -> int:
    return counts(daemon).get((MODEL, "ok"), 0)


def _live(daemon: Daemon) -> int:
    """The gauge of sequences with state in the server."""
    _, body = daemon.get("/metrics")
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            if (sample.name, sample.labels.get("model")) == ("inferd_sequences", MODEL):
                return int(sample.value)
    raise SystemExit(f"the daemon's metrics hold no inferd_sequences of {MODEL}\n{daemon.log()}")


def _seconds_until(reached: Callable[[], bool], patience: float) -> float:
    """Seconds until ``reached`` holds, checked ten times a second; more than ``patience`` if it never does."""
    started = said = time.monotonic()
    while not reached() and time.monotonic() - started <= patience:
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"  waiting for {said - started:.0f} s", flush=True)
        time.sleep(0.1)
    return time.monotonic() - started


# -- client processes -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of sequences: largest difference from the reference, lowest and highest probability."""

    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, all_: "Sequence[Outcome]") -> "Outcome":
        """The result of several together."""
        return cls(max(o.difference for o in all_), min(o.low for o in all_), max(o.high for o in all_))


class Clients:
    """Client processes, each with a share of the sequences. All get the same command, then all report."""

    def __init__(self, target: str, model: Path, options: argparse.Namespace) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._share: int = options.sequences // options.processes
        self._processes: list[tuple[BaseProcess, Connection[Any, Any]]] = []
        for first in range(0, options.sequences, self._share):
            ours, theirs = spawn.Pipe()
            work = (theirs, target, model, range(first, first + self._share), options.seconds)
            process = spawn.Process(target=_client, args=work, daemon=True)
            process.start()
            theirs.close()
            self._processes.append((process, ours))
        print(f"{options.processes} clients prepare audio and reference", flush=True)
        self.hear(lambda: print("  still preparing", flush=True))

    def say(self, word: str) -> None:
        """Send a command to every client."""
        for _, pipe in self._processes:
            pipe.send(word)

    def hear(self, meanwhile: Callable[[], None] = lambda: None) -> Outcome:
        """The reports of all clients; calls ``meanwhile`` every ten seconds until they have come."""
        heard: list[Outcome] = []
        for _, pipe in self._processes:
            while not pipe.poll(10):
                meanwhile()
            try:
                heard.append(pipe.recv())
            except EOFError:
                raise SystemExit("a client failed; its traceback stands above") from None
        return Outcome.of(heard)

    def kill_every_other(self) -> int:
        """Kill every other process; the number of sequences that they had."""
        killed, self._processes = self._processes[1::2], self._processes[::2]
        _kill(killed)
        return len(killed) * self._share

    def kill(self) -> None:
        """Kill all that still run."""
        _kill(self._processes)


def _kill(processes: "Sequence[tuple[BaseProcess, Connection[Any, Any]]]") -> None:
    for process, _ in processes:
        process.kill()
    for process, _ in processes:
        process.join()


def _client(pipe: "Connection[Any, Any]", target: str, model: Path, numbers: range, seconds: float) -> None:
    sequences = [VoiceActivity(number, model, seconds) for number in numbers]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_converse(pipe, target, sequences))


async def _converse(pipe: "Connection[Any, Any]", target: str, sequences: "Sequence[VoiceActivity]") -> None:
    """Play all sequences on command, then over and over until told to end."""
    pipe.send(Outcome(0, 0, 0))
    async with connect(target) as channel:
        infer = method(channel, "ModelStreamInfer")
        await asyncio.to_thread(pipe.recv)
        pipe.send(Outcome.of(await asyncio.gather(*(s.play(infer) for s in sequences))))
        await asyncio.to_thread(pipe.recv)
        over = asyncio.Event()
        endless = asyncio.gather(*(s.play(infer, over) for s in sequences))
        await asyncio.to_thread(pipe.recv)
        over.set()
        pipe.send(Outcome.of(await endless))


class VoiceActivity:
    """One sequence: its frames, and the probabilities of speech that onnxruntime computes for them alone."""

    def __init__(self, number: int, model: Path, seconds: float) -> None:
        self._id = number + 1
        padded = np.concatenate([np.zeros(CONTEXT, np.float32), _voice(number, _frames(seconds) * FRAME)])
        self._frames = [padded[at : at + CONTEXT + FRAME] for at in range(0, len(padded) - CONTEXT, FRAME)]
        self._expected = _reference(model, self._frames)

    async def play(self, infer: Any, over: asyncio.Event | None = None) -> Outcome:
        """Send all frames on one stream; with ``over``, repeat until it is set."""
        start, middle, end = self._header(sequence_start=True), self._header(), self._header(sequence_end=True)
        call = infer()
        answers: list[float] = []
        sent, last = 0, False
        while not last:
            if sent - len(answers) == WINDOW:
                answers.append(_probability(await call.read()))
            last = sent > 0 and (over.is_set() if over else sent == len(self._frames) - 1)
            contents = pb.ModelInferRequest(raw_input_contents=[self._frames[sent % len(self._frames)].tobytes()])
            await call.write((end if last else middle if sent else start) + contents.SerializeToString())
            sent += 1
        await call.done_writing()
        while len(answers) < sent:
            answers.append(_probability(await call.read()))
        compared = np.array(answers[: len(self._expected)], np.float32)
        difference = np.abs(compared - self._expected[: len(compared)]).max()
        return Outcome(float(difference), float(compared.min()), float(compared.max()))

    def _header(self, **flags: bool) -> bytes:
        """A request without its contents: concatenated messages parse as one."""
        message = pb.ModelInferRequest(model_name=MODEL)
        message.inputs.add(name="input", datatype="FP32", shape=[1, CONTEXT + FRAME])
        message.parameters["sequence_id"].int64_param = self._id
        for name, value in flags.items():
            message.parameters[name].bool_param = value
        return message.SerializeToString()


def _probability(answer: pb.ModelStreamInferResponse) -> float:
    if answer.error_message:
        raise SystemExit(f"a frame failed: {answer.error_message}")
    response = answer.infer_response
    place = [output.name for output in response.outputs].index("output")
    return float(np.frombuffer(response.raw_output_contents[place], "<f4").item())


def _frames(seconds: float) -> int:
    return int(seconds * RATE) // FRAME


def _voice(number: int, samples: int) -> Signal:
    """Vowels at the pace of speech, chosen and pitched by ``number``, between stretches of faint noise."""
    chance = np.random.default_rng(number)
    clock = np.arange(samples) / RATE

    def wander(values: npt.NDArray[np.float64], pace: float) -> Signal:
        return np.interp(clock * pace, np.arange(len(values)), values).astype(np.float32)

    seconds = int(clock[-1]) + 2
    base = chance.uniform(100, 200)
    pitch = base * wander(chance.uniform(0.8, 1.2, 4 * seconds), 4)
    spoken = chance.integers(0, len(_FORMANTS), _SYLLABLES * seconds)
    vowels = [wander(spoken == vowel, _SYLLABLES) for vowel in range(len(_FORMANTS))]
    first = np.exp(2j * np.pi * np.cumsum(pitch / RATE, dtype=np.float64)).astype(np.complex64)
    voice, harmonic = np.zeros(samples, np.float32), first.copy()
    for order in range(1, 40):
        loudness = 0.02 + np.exp(-(((order * base - _FORMANTS) / 120) ** 2)) @ np.array([1.0, 0.6, 0.3])
        voice += sum(np.float32(each) * vowel for each, vowel in zip(loudness, vowels, strict=True)) * harmonic.imag
        harmonic *= first
    syllables = 0.3 + 0.7 * np.sin(np.pi * _SYLLABLES * clock) ** 2
    talking = wander(np.repeat(chance.random(seconds // 2 + 1) > 0.4, 2), 1)
    noise = 0.003 * chance.standard_normal(samples)
    signal: Signal = (0.3 * voice / np.abs(voice).max() * syllables * talking + noise).astype(np.float32)
    return signal


def _reference(model: Path, frames: Sequence[Signal]) -> Signal:
    """The probability of each frame, shape [frames]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    state = np.zeros((2, 1, 128), np.float32)
    probabilities = []
    for frame in frames:
        probability, state = session.run(["output", "stateN"], {"input": frame[None], "state": state})
        probabilities.append(probability.item())
    return np.array(probabilities, np.float32)


if __name__ == "__main__":
    sys.exit(main())
