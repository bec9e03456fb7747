"""BentoML: a service with one endpoint a model, that take and give bodies as they are.

Its guide to inputs and outputs offers arrays, which travel as JSON, and files with a content type, whose bytes are
the body: of 600 KB of floats the second takes a twentieth of the time. It puts each body into a temporary file.
https://docs.bentoml.com/en/latest/build-with-bentoml/iotypes.html
"""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from infer_pool import InferPool, Settings

settings = Settings.read()
Body = Annotated[Path, ContentType("application/octet-stream")]
Answer = Annotated[bytes, ContentType("application/octet-stream")]


async def _answer(pool: InferPool, body: Path) -> bytes:
    answer = await pool.infer_async(pool.from_bytes(body.read_bytes()))  # noqa: ASYNC240 - what it offers is a file
    return bytes(answer.tobytes())


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class OpenVINOModels:
    def __init__(self) -> None:
        self._pools = {name: InferPool(file, settings.threads) for name, file in settings.models.items()}

    @bentoml.api(route="/noop")
    async def noop(self, body: Body, /) -> Answer:
        return await _answer(self._pools["noop"], body)

    @bentoml.api(route="/magika")
    async def magika(self, body: Body, /) -> Answer:
        return await _answer(self._pools["magika"], body)

    @bentoml.api(route="/squeezenet")
    async def squeezenet(self, body: Body, /) -> Answer:
        return await _answer(self._pools["squeezenet"], body)

    @bentoml.api(route="/resnet50")
    async def resnet50(self, body: Body, /) -> Answer:
        return await _answer(self._pools["resnet50"], body)
