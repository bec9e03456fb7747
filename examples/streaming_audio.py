"""Finds speech in a recording: frames of 32 ms over one stream. inferd keeps the state between frames.

    pip install grpcio grpcio-tools numpy
    make serve                                     # in another terminal
    python examples/streaming_audio.py [HOST:PORT [RECORDING.wav]]

RECORDING.wav is 16 kHz, mono, 16 bit. Without one it sends a second of silence, a buzz like a voice, and silence.
"""

import queue
import sys
import wave
from collections.abc import Iterator

import grpc
import numpy as np
from protocol import messages, services

RATE, FRAME, CONTEXT = 16_000, 512, 64  # the model takes each frame with the 64 samples before it
SEQUENCE = 7  # any number that this client uses for one recording at a time


def recording(path: str) -> np.ndarray:
    """Samples of -1..1."""
    if path:
        with wave.open(path) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                sys.exit(f"{path}: not 16 kHz, mono, 16 bit")
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    time = np.arange(RATE) / RATE
    pitch = np.cumsum(110 + 25 * np.sin(2 * np.pi * 3 * time)) / RATE
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    buzz = loudness * sum(np.sin(2 * np.pi * n * pitch) / n for n in range(1, 30))
    return np.concatenate([np.zeros(RATE), 0.15 * buzz, np.zeros(RATE)]).astype(np.float32)


def requests(samples: np.ndarray) -> Iterator[messages.ModelInferRequest]:
    """One request a frame; the first begins the sequence, the last ends it."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples])
    frames = len(samples) // FRAME
    for frame in range(frames):
        piece = padded[frame * FRAME : frame * FRAME + CONTEXT + FRAME]
        request = messages.ModelInferRequest(model_name="silero-vad", id=str(frame))
        request.parameters["sequence_id"].int64_param = SEQUENCE
        request.parameters["sequence_start"].bool_param = frame == 0
        request.parameters["sequence_end"].bool_param = frame == frames - 1
        request.inputs.add(name="input", datatype="FP32", shape=[1, CONTEXT + FRAME])
        request.raw_input_contents.append(piece.tobytes())
        yield request


def main(target: str = "127.0.0.1:8001", path: str = "") -> None:
    samples = recording(path)
    # Frames of a live recording go into this queue as they arrive; None ends the stream.
    outgoing: queue.SimpleQueue = queue.SimpleQueue()
    for request in requests(samples):
        outgoing.put(request)
    outgoing.put(None)
    with grpc.insecure_channel(target) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        speech = []
        try:
            # Responses arrive in the order of the requests.
            for answer in stub.ModelStreamInfer(iter(outgoing.get, None), timeout=60):
                if answer.error_message:
                    sys.exit(answer.error_message)
                speech.append(float(np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32)[0]))
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    for second in range(0, len(speech), RATE // FRAME):
        part = speech[second : second + RATE // FRAME]
        print(f"second {second // (RATE // FRAME)}: speech in {sum(p > 0.5 for p in part)} of {len(part)} frames")
    print(f"{len(speech)} frames answered, in one sequence")


if __name__ == "__main__":
    main(*sys.argv[1:])
