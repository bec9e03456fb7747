"""Voice activity through the daemon is what onnxruntime computes, over a signal whose state the client carries."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from inferd.rpc.client import InferenceClient
from tests.system.daemon import Daemon

pytestmark = pytest.mark.system

MODEL = "silero-vad"
RATE = 16_000
FRAME = 512
CONTEXT = 64

Signal = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def signal() -> Signal:
    """30 s in [-1, 1]: vowel-like bursts, pitch and formants wandering, between stretches of faint noise."""
    chance = np.random.default_rng(11)
    time = np.arange(30 * RATE) / RATE
    pitch = 130 + 25 * np.sin(2 * np.pi * 0.7 * time) + 8 * np.sin(2 * np.pi * 5 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sway = 1 + 0.3 * np.sin(2 * np.pi * 1.3 * time)
    voice = np.zeros_like(time)
    for harmonic in range(1, 30):
        loudness = np.full_like(time, 0.02)
        for formant, weight in ((550, 1.0), (1300, 0.6), (2500, 0.3)):
            loudness += weight * np.exp(-(((harmonic * pitch - formant * sway) / 120) ** 2))
        voice += loudness * np.sin(harmonic * phase)
    syllables = 0.3 + 0.7 * np.clip(np.sin(2 * np.pi * 3.5 * time), 0, 1)
    talking = np.sin(2 * np.pi * 0.15 * time) > 0
    noise = 0.003 * chance.standard_normal(len(time))
    return (0.3 * voice / np.abs(voice).max() * syllables * talking + noise).astype(np.float32)


def voice_activity(run: Callable[[Arrays], Arrays], signal: Signal) -> tuple[Signal, Signal]:
    """Probability of speech in each frame, shape [frames], and the state at the end, [2, 1, 128]."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), signal])
    state = np.zeros((2, 1, 128), np.float32)
    probabilities = []
    for start in range(0, len(signal) - FRAME + 1, FRAME):
        answer = run({"input": padded[None, start : start + CONTEXT + FRAME], "state": state})
        state = answer["stateN"]
        probabilities.append(answer["output"].item())
    return np.array(probabilities, np.float32), state


def test_probabilities_and_state_are_those_of_onnxruntime(
    demo_server: Daemon, demo_repository: Path, signal: Signal, figure: Callable[[str], None]
) -> None:
    session = onnxruntime.InferenceSession(demo_repository / MODEL / "1" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    expected, expected_state = voice_activity(
        lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)), signal
    )

    with InferenceClient(demo_server.grpc) as client:
        actual, actual_state = voice_activity(lambda inputs: client.infer(MODEL, inputs), signal)

    off, state_off = np.abs(actual - expected).max(), np.abs(actual_state - expected_state).max()
    figure(f"silero-vad: {len(expected)} frames, probability off by at most {off:.1e}, last state by {state_off:.1e}")
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    np.testing.assert_allclose(actual_state, expected_state, atol=1e-3)
    assert expected.max() > 0.5 > expected.min(), "the signal has to hold both speech and none"
