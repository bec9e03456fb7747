"""Classifies a text with magika: one unary call, with a deadline.

    pip install grpcio grpcio-tools numpy
    make serve                                     # in another terminal
    python examples/sync_client.py [HOST:PORT]

Needs a daemon with the demo models, such as that of `make serve`.
"""

import json
import sys
from pathlib import Path

import grpc
import numpy as np
from protocol import messages, services

LABELS = Path(__file__).resolve().parent.parent / "models/magika/config.min.json"  # fetched by `make serve`
TEXT = b"#!/bin/sh\nset -e\nfor file in *.txt; do\n  echo $file\ndone\n"


def features(text: bytes) -> np.ndarray:
    """magika reads the first 1024 bytes and the last; 256 stands for "none"."""
    first, last = np.frombuffer(text[:1024], np.uint8), np.frombuffer(text[-1024:], np.uint8)
    row = np.full(2048, 256, np.int32)
    row[: first.size] = first
    row[2048 - last.size :] = last
    return row[None]


def main(target: str = "127.0.0.1:8001") -> None:
    with grpc.insecure_channel(target) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        rows = features(TEXT)
        request = messages.ModelInferRequest(model_name="magika", id="first")
        request.inputs.add(name="bytes", datatype="INT32", shape=rows.shape)
        request.raw_input_contents.append(rows.tobytes())
        try:
            metadata = stub.ModelMetadata(messages.ModelMetadataRequest(name="magika"), timeout=5)
            answer = stub.ModelInfer(request, timeout=2)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    print("inputs: ", [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs])
    print("outputs:", [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs])
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(tuple(answer.outputs[0].shape))
    label = json.loads(LABELS.read_text())["target_labels_space"][scores[0].argmax()]
    print(f"{label}, with a score of {scores[0].max():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
