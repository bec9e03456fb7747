"""Ray Serve with a gRPC service of one's own, as its guide advises; the service is the Open Inference Protocol.

https://docs.ray.io/en/latest/serve/advanced-guides/grpc-guide.html
`RAY_SERVE_THROUGHPUT_OPTIMIZED` is set, as its guide to performance says.
"""

import os
import signal
import sys
from typing import Any

import ray
from infer_pool import InferPool, Settings
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

# The runner generates these from inferd's .proto and puts them on PYTHONPATH.
SERVICER = "open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


@serve.deployment(
    num_replicas=int(os.environ.get("RAY_REPLICAS", "1")),
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0.1},
)
class OpenVINOModels:
    def __init__(self, files: dict[str, str], streams: int) -> None:
        import open_inference_pb2

        self._messages = open_inference_pb2
        self._pools = {name: InferPool(file, streams) for name, file in files.items()}

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802 - the protocol's name
        pool = self._pools[request.model_name]
        answer = await pool.infer_async(pool.from_bytes(request.raw_input_contents[0]))
        response = self._messages.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name=pool.output, datatype="FP32", shape=answer.shape)
        response.raw_output_contents.append(answer.tobytes())
        return response


if __name__ == "__main__":
    settings = Settings.read()
    replicas = int(os.environ.get("RAY_REPLICAS", "1"))
    ray.init(
        num_cpus=max(2, settings.threads),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        _temp_dir=settings.scratch,
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host="127.0.0.1", port=settings.other_ports[0]),
        grpc_options=gRPCOptions(port=settings.port, grpc_servicer_functions=[SERVICER]),
    )
    serve.run(OpenVINOModels.bind(settings.models, settings.threads // replicas), name="models")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    signal.pause()
