"""OpenVINO as every peer runs it: a compiled model, and as many infer requests as it has streams.

Stands alone: it is imported in each peer's own environment, where nothing of inferd is installed.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov


@dataclass(frozen=True)
class Settings:
    """The runner's settings for a peer, as JSON in the variable PEER_SETTINGS.

    ``models`` are the files by model name, ``port`` is the port to listen on at 127.0.0.1, ``other_ports`` are free
    ones for further listeners of the server. ``threads`` is the budget of the whole server for computing. ``choices``
    has the configuration by model name, of a server that has several.
    """

    models: dict[str, str]
    port: int
    other_ports: list[int]
    threads: int
    scratch: str
    choices: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Settings":
        return cls(**json.loads(os.environ["PEER_SETTINGS"]))


def properties(streams: int) -> dict[str, Any]:
    """The properties to compile a model with: FP32, on ``streams`` streams of one thread each."""
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": "f32",
    }


class InferPool:
    """The model in ``file``, compiled to FP32 with ``streams`` streams of one thread each."""

    def __init__(self, file: str, streams: int) -> None:
        compiled = ov.Core().compile_model(file, "CPU", properties(streams))
        self.input, self.output = compiled.inputs[0].any_name, compiled.outputs[0].any_name
        self.shape = tuple(compiled.inputs[0].shape)
        self.dtype: np.dtype[Any] = np.dtype(compiled.inputs[0].element_type.to_dtype())
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(streams)

    def infer(self, array: Any) -> Any:
        """Run on an idle infer request, after waiting for one. The output is a copy."""
        request = self._idle.get()
        try:
            request.infer([array], share_inputs=True)
            return request.get_output_tensor(0).data.copy()
        finally:
            self._idle.put(request)

    async def infer_async(self, array: Any) -> Any:
        """The same without blocking the event loop: `infer` releases the GIL while it computes."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.infer, array)

    def from_bytes(self, data: bytes) -> Any:
        """The input in ``data``, row-major and little-endian."""
        return np.frombuffer(data, self.dtype).reshape(self.shape)
