"""The RPCs that describe: server, models, configuration, statistics, readiness, settings."""

from collections.abc import Mapping

from inferd import __version__
from inferd._pb import model_config_pb2 as mc
from inferd._pb import open_inference_pb2 as pb
from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.errors import InvalidRequest, NotAllowed, listed
from inferd.lifecycle import Lifecycle
from inferd.metrics.recorder import Recorder
from inferd.rpc import statistics
from inferd.tensors import DType, Signature, TensorSpec
from inferd.transport.call import ServerCall

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)

_CONFIG_TYPES = {t: getattr(mc, f"TYPE_{'STRING' if t is DType.BYTES else t.wire}") for t in DType}


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
            properties=_properties(deployment),
        )

    async def model_config(self, request: pb.ModelConfigRequest, _: ServerCall) -> pb.ModelConfigResponse:
        model_version, deployment = self._catalog.find(request.name, request.version)
        return pb.ModelConfigResponse(config=_config(model_version, deployment))

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


def _properties(deployment: Deployment) -> dict[str, str]:
    """For each device what was requested and what the device really does."""
    config = deployment.config
    properties = {
        "devices": ",".join(config.devices),
        "objective": config.objective.goal,
        "execution_mode": config.execution.mode,
        "max_batch_size": str(deployment.signature.max_batch),
    }
    if remarks := deployment.signature.remarks:
        properties |= {"numbers": "; ".join(remarks), "numbers.out_of_range": config.numbers.out_of_range}
    for entry in deployment.loaded.pools:
        effective, device = entry.effective, entry.pool.device
        properties |= {
            f"{device}.execution_devices": ",".join(effective.execution_devices),
            f"{device}.precision": effective.precision,
            f"{device}.streams": str(effective.streams),
            f"{device}.threads": str(effective.threads),
            f"{device}.infer_requests": str(entry.pool.size),
        }
    return properties


def _config(model_version: ModelVersion, deployment: Deployment) -> mc.ModelConfig:
    signature = deployment.signature
    config = mc.ModelConfig(
        name=model_version.name,
        platform="openvino",
        backend="openvino",
        max_batch_size=signature.max_batch,
        version_policy=_version_policy(deployment),
        input=[
            mc.ModelInput(name=s.name, data_type=_CONFIG_TYPES[s.dtype], dims=_dims(s, signature))
            for s in signature.shown_inputs
        ],
        output=[
            mc.ModelOutput(name=s.name, data_type=_CONFIG_TYPES[s.dtype], dims=_dims(s, signature))
            for s in signature.shown_outputs
        ],
    )
    for entry in deployment.loaded.pools:
        kind = mc.ModelInstanceGroup.KIND_CPU if entry.pool.device == "CPU" else mc.ModelInstanceGroup.KIND_MODEL
        config.instance_group.add(name=entry.pool.device, kind=kind, count=entry.pool.size)
    for key, value in _properties(deployment).items():
        config.parameters[key].string_value = value
    return config


def _version_policy(deployment: Deployment) -> mc.ModelVersionPolicy:
    versions = deployment.config.versions
    match versions.policy:
        case "all":
            return mc.ModelVersionPolicy(all=mc.ModelVersionPolicy.All())
        case "listed":
            return mc.ModelVersionPolicy(specific=mc.ModelVersionPolicy.Specific(versions=versions.listed))
        case _:
            return mc.ModelVersionPolicy(latest=mc.ModelVersionPolicy.Latest(num_versions=versions.count))


def _dims(spec: TensorSpec, signature: Signature) -> list[int]:
    return spec.wire_shape[1:] if signature.max_batch else spec.wire_shape
