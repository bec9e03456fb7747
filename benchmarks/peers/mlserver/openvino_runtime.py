"""An inference runtime for MLServer, as its guide to custom runtimes advises.

https://mlserver.readthedocs.io/en/latest/user-guide/custom.html
"""

from infer_pool import InferPool
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OpenVINOModel(MLModel):
    """Loads the file that `parameters.uri` of model-settings.json names."""

    async def load(self) -> bool:
        parameters = self.settings.parameters
        self._pool = InferPool(parameters.uri, parameters.extra["streams"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        array = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        answer = await self._pool.infer_async(array)
        output = NumpyCodec.encode_output(self._pool.output, answer)
        return InferenceResponse(model_name=self.name, outputs=[output])
