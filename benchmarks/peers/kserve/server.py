"""KServe's Python SDK: a custom predictor, as its guide advises, asked over gRPC.

https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/custom-predictor/custom-predictor
The line that it logs for each request is off, as it is for every server here.
"""

import logging

from infer_pool import InferPool, Settings
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.numpy_codec import from_np_dtype


class OpenVINOModel(Model):
    def __init__(self, name: str, file: str, streams: int) -> None:
        super().__init__(name)
        self._file, self._streams = file, streams

    def load(self) -> bool:
        self._pool = InferPool(self._file, self._streams)
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:  # noqa: ARG002
        answer = await self._pool.infer_async(payload.inputs[0].as_numpy())
        output = InferOutput(self._pool.output, list(answer.shape), from_np_dtype(answer.dtype))
        output.set_data_from_numpy(answer, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    settings = Settings.read()
    models = [OpenVINOModel(name, file, settings.threads) for name, file in settings.models.items()]
    for model in models:
        model.load()
    server = ModelServer(
        grpc_port=settings.port, http_port=settings.other_ports[0], workers=1, enable_latency_logging=False
    )
    logging.getLogger("kserve").setLevel(logging.WARNING)
    server.start(models)
