"""A model of Triton's Python backend that runs OpenVINO, as its guide advises.

https://github.com/triton-inference-server/python_backend#usage
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils
from infer_pool import InferPool


class TritonPythonModel:
    """One instance, a process of its own; `execute` gets as many requests as dynamic batching puts together."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        streams = int(parameters["streams"]["string_value"])
        self._pool = InferPool(parameters["file"]["string_value"], streams)
        self._threads = ThreadPoolExecutor(streams) if streams > 1 else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        arrays = [pb_utils.get_input_tensor_by_name(request, self._pool.input).as_numpy() for request in requests]
        # A model is one row, here as at every server: several requests run side by side, not as one.
        spread = self._threads is not None and len(arrays) > 1
        outputs = self._threads.map(self._pool.infer, arrays) if spread else map(self._pool.infer, arrays)
        return [pb_utils.InferenceResponse([pb_utils.Tensor(self._pool.output, output)]) for output in outputs]
