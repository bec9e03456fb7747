"""The RPCs that describe: server, models, configuration, statistics, readiness, settings."""

from collections.abc import Mapping

from inferd import __version__
from inferd._pb import open_inference_pb2 as pb
from inferd.catalog.catalog import Catalog
from inferd.errors import InvalidRequest, NotAllowed, listed
from inferd.lifecycle import Lifecycle
from inferd.metrics.recorder import Recorder
from inferd.rpc import model_config, statistics
from inferd.tensors import TensorSpec
from inferd.transport.call import ServerCall

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
)


class Metadata:
    """The read-only RPCs."""

    def __init__(
        self,
        catalog: Catalog,
        lifecycle: Lifecycle,
        recorder: Recorder,
        *,
        log_settings: Mapping[str, str],
        shared_memory: bool = False,
    ) -> None:
        self._extensions = (*EXTENSIONS, *(["system_shared_memory"] if shared_memory else []))
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._recorder = recorder
        self._log_settings = log_settings

    async def server_live(self, _: pb.ServerLiveRequest, __: ServerCall) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: pb.ServerReadyRequest, __: ServerCall) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._lifecycle.accepts)

    async def model_ready(self, request: pb.ModelReadyRequest, _: ServerCall) -> pb.ModelReadyResponse:
        answers = self._catalog.ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=answers and self._lifecycle.accepts)

    async def server_metadata(self, _: pb.ServerMetadataRequest, __: ServerCall) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="inferd", version=__version__, extensions=self._extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, _: ServerCall) -> pb.ModelMetadataResponse:
        model_version, deployment = self._catalog.find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=model_version.name,
            versions=[str(s.version) for s, _ in self._catalog.serving() if s.name == model_version.name],
            platform="openvino",
            inputs=[_tensor_metadata(s) for s in deployment.signature.shown_inputs],
            outputs=[_tensor_metadata(s) for s in deployment.signature.shown_outputs],
            properties=model_config.properties(deployment),
        )

    async def model_config(self, request: pb.ModelConfigRequest, _: ServerCall) -> pb.ModelConfigResponse:
        model_version, deployment = self._catalog.find(request.name, request.version)
        return pb.ModelConfigResponse(config=model_config.of(model_version, deployment))

    async def model_statistics(self, request: pb.ModelStatisticsRequest, _: ServerCall) -> pb.ModelStatisticsResponse:
        """Statistics of one version, of all ready versions of a model, or of all ready models, as in Triton."""
        if request.name:
            one = self._catalog.find(request.name, request.version)[0]
            found = [one] if request.version else [s for s, _ in self._catalog.serving() if s.name == request.name]
        elif request.version:
            raise InvalidRequest("", "a version is given without a model name")
        else:
            found = [model_version for model_version, _ in self._catalog.serving()]
        return pb.ModelStatisticsResponse(
            model_stats=[
                statistics.message(s.name, s.version, self._recorder.statistics(s.name, str(s.version))) for s in found
            ]
        )

    async def repository_index(self, request: pb.RepositoryIndexRequest, _: ServerCall) -> pb.RepositoryIndexResponse:
        entries = [e for e in self._catalog.index() if not request.ready or e.state.value == "READY"]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=e.name, version=e.version, state=e.state.value, reason=e.reason
                )
                for e in entries
            ]
        )

    async def trace_setting(self, request: pb.TraceSettingRequest, _: ServerCall) -> pb.TraceSettingResponse:
        _refuse_change("trace settings", request.settings)
        response = pb.TraceSettingResponse()
        response.settings["trace_level"].value.append("OFF")
        return response

    async def log_settings(self, request: pb.LogSettingsRequest, _: ServerCall) -> pb.LogSettingsResponse:
        _refuse_change("log settings", request.settings)
        response = pb.LogSettingsResponse()
        for key, value in self._log_settings.items():
            response.settings[key].string_param = value
        return response


def _refuse_change(what: str, settings: Mapping[str, object]) -> None:
    if settings:
        raise NotAllowed(
            f"changing {what} ({listed(settings)}) over the wire", "they are part of the server's configuration"
        )


def _tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.dtype.wire, shape=spec.wire_shape)
