"""LitServe: one LitAPI a model, each with one worker process for each thread of the budget.

Its requests are JSON or forms unless `decode_request` says what it takes, in FastAPI's way: here the body as it is.
https://lightning.ai/docs/litserve/features/request-response-format
A worker runs one request at a time, so that there are as many as `workers_per_device` says, of one stream each.
"""

from typing import Annotated, Any

import litserve as ls
from fastapi import Body
from fastapi.responses import Response
from infer_pool import InferPool, Settings


class OpenVINOModel(ls.LitAPI):
    def __init__(self, name: str, file: str) -> None:
        super().__init__(api_path=f"/{name}")
        self._file = file

    def setup(self, device: str) -> None:  # noqa: ARG002 - its signature
        self._pool = InferPool(self._file, 1)

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return self._pool.from_bytes(request)

    def predict(self, x: Any) -> Any:
        return self._pool.infer(x)

    def encode_response(self, output: Any) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    settings = Settings.read()
    apis = [OpenVINOModel(name, file) for name, file in settings.models.items()]
    server = ls.LitServer(apis, accelerator="cpu", workers_per_device=settings.threads, timeout=60)
    server.run(host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="warning")
