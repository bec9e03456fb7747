"""A model's configuration and properties, as clients of the Open Inference Protocol read them."""

from inferd._pb import model_config_pb2 as mc
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.engine import class_labels
from inferd.engine.state import most_sequences
from inferd.tensors import DType, Signature, TensorSpec

_TYPES = {t: getattr(mc, f"TYPE_{'STRING' if t is DType.BYTES else t.wire}") for t in DType}


def properties(deployment: Deployment) -> dict[str, str]:
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


def of(model_version: ModelVersion, deployment: Deployment) -> mc.ModelConfig:
    """The configuration of ``model_version`` as load generators and client libraries read it."""
    signature = deployment.signature
    labels = class_labels.FILE if deployment.loaded.class_labels else ""
    config = mc.ModelConfig(
        name=model_version.name,
        platform="openvino",
        backend="openvino",
        max_batch_size=signature.max_batch,
        version_policy=_version_policy(deployment),
        input=[
            mc.ModelInput(
                name=s.name, data_type=_TYPES[s.dtype], format=_format(s, deployment), dims=_dims(s, signature)
            )
            for s in signature.shown_inputs
        ],
        output=[
            mc.ModelOutput(name=s.name, data_type=_TYPES[s.dtype], dims=_dims(s, signature), label_filename=labels)
            for s in signature.shown_outputs
        ],
        model_transaction_policy=mc.ModelTransactionPolicy(decoupled=False),
    )
    # An empty message says that there is none: clients look whether it is there.
    if signature.in_sequences:
        config.sequence_batching.CopyFrom(_sequence_batching(deployment))
    elif deployment.dynamic_batching:
        config.dynamic_batching.CopyFrom(_dynamic_batching(deployment))
    for entry in deployment.loaded.pools:
        kind = mc.ModelInstanceGroup.KIND_CPU if entry.pool.device == "CPU" else mc.ModelInstanceGroup.KIND_MODEL
        config.instance_group.add(name=entry.pool.device, kind=kind, count=entry.pool.size)
    for key, value in properties(deployment).items():
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


def _sequence_batching(deployment: Deployment) -> mc.ModelSequenceBatching:
    settings = deployment.config.sequences
    return mc.ModelSequenceBatching(
        max_sequence_idle_microseconds=round(settings.idle_timeout * 1e6),
        oldest=mc.ModelSequenceBatching.Oldest(
            max_candidate_sequences=most_sequences(deployment.config, deployment.signature)
        ),
    )


def _dynamic_batching(deployment: Deployment) -> mc.ModelDynamicBatching:
    settings = deployment.config.batching
    return mc.ModelDynamicBatching(
        preferred_batch_size=settings.preferred_sizes, max_queue_delay_microseconds=round(settings.max_delay * 1e6)
    )


def _format(spec: TensorSpec, deployment: Deployment) -> mc.ModelInput.Format:
    """Clients send images to inputs with preprocessing as these are: rows of pixels."""
    named = {spec.name, *spec.aliases} & deployment.config.preprocessing.keys()
    return mc.ModelInput.FORMAT_NHWC if named else mc.ModelInput.FORMAT_NONE
