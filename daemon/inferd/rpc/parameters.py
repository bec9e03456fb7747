"""The parameters of requests, inputs and outputs: inferd acts on those it knows, and ignores the others.

Each client of the field sends some of its own. Only what would change a request's meaning is refused where it is
unknown: all that concerns sequences, shared memory and classification.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest, listed, one_line
from inferd.rpc import classification, shm_params
from inferd.rpc.parameter_values import whole_number
from inferd.tensors import Signature

log = structlog.get_logger("inferd.rpc")

# Ids are kept as long as their sequences, and appear in messages.
MAX_SEQUENCE_ID = 256

# Ids travel back with the response and into logs and spans; people and clients choose them for that.
MAX_REQUEST_ID = 1024
MAX_PARAMETERS = 64

_FINAL_RESPONSE = "triton_enable_empty_final_response"
_OF_REQUESTS = ("timeout", "priority", "sequence_id", "sequence_start", "sequence_end", _FINAL_RESPONSE)
_OF_OUTPUTS = (*shm_params.NAMES, classification.NAME)
# Unknown ones that begin so have a meaning that inferd would miss.
_STRICT = ("sequence_", "shared_memory_", classification.NAME)

# Names of ignored parameters that the log shows, each once.
_MOST_LOGGED = 100


@dataclass(frozen=True, slots=True)
class Parameters:
    """The request parameters that inferd acts on: ``timeout`` in nanoseconds, None without one;
    ``sequence`` is the sequence's id, None outside a sequence. ``ignored`` are the names of others, of the request,
    its inputs and its outputs."""

    timeout: int | None = None
    priority: int = 0
    final_response: bool = False
    sequence: int | str | None = None
    sequence_start: bool = False
    sequence_end: bool = False
    ignored: tuple[str, ...] = ()


NO_PARAMETERS = Parameters()


def decode(message: pb.ModelInferRequest) -> Parameters:
    """The request's parameters; raises InvalidRequest for a value out of range, an unknown key that may change what is
    meant, or a request id that is too long. Values that concern shared memory are checked with the tensors."""
    if len(message.id) > MAX_REQUEST_ID:
        raise InvalidRequest(
            message.model_name,
            f"the request's id has {len(message.id)} characters; at most {MAX_REQUEST_ID} are allowed",
        )
    model = message.model_name
    ignored = tuple(_of_tensors(message))
    if not message.parameters:
        return Parameters(ignored=ignored) if ignored else NO_PARAMETERS
    if len(message.parameters) > MAX_PARAMETERS:
        raise InvalidRequest(
            model, f"{len(message.parameters)} request parameters are given; at most {MAX_PARAMETERS} are allowed"
        )
    timeout, priority, final_response = None, 0, False
    sequence: int | str | None = None
    start = end = False
    for key, value in message.parameters.items():
        if key == "timeout":
            microseconds = whole_number(model, "", key, value)
            timeout = microseconds * 1000 if microseconds else None
        elif key == "priority":
            priority = whole_number(model, "", key, value)
        elif key == "sequence_id":
            sequence = _sequence_id(model, value)
        elif key == "sequence_start":
            start = _flag(model, key, value)
        elif key == "sequence_end":
            end = _flag(model, key, value)
        elif key == _FINAL_RESPONSE:
            final_response = value.bool_param
        else:
            _check_ignored(model, "unknown request", key, _OF_REQUESTS)
            ignored = (*ignored, key)
    if sequence is None and (start or end):
        key = "sequence_start" if start else "sequence_end"
        raise InvalidRequest(model, f"parameter '{key}' needs a sequence_id")
    return Parameters(timeout, priority, final_response, sequence, start, end, ignored)


def _of_tensors(message: pb.ModelInferRequest) -> Iterator[str]:
    """Names of the ignored parameters of inputs and outputs."""
    for kind, items, known in (("input", message.inputs, shm_params.NAMES), ("output", message.outputs, _OF_OUTPUTS)):
        for item in items:
            for key in item.parameters:
                if key not in known:
                    where = f"{kind} '{one_line(item.name, 80)}': unknown"
                    _check_ignored(message.model_name, where, key, known)
                    yield key


def _check_ignored(model: str, where: str, key: str, known: Iterable[str]) -> None:
    if key.startswith(_STRICT):
        raise InvalidRequest(model, f"{where} parameter '{one_line(key, 80)}'; allowed: {listed(known)}")


def check_sequence(model: str, parameters: Parameters, signature: Signature) -> int | str | None:
    """The request's sequence id; raises InvalidRequest if the model can't use one, or needs one."""
    sequence = parameters.sequence
    if sequence is None and signature.stateful:
        raise InvalidRequest(
            model, "it keeps state between requests: send a sequence_id, and sequence_start with the first request"
        )
    if sequence is not None and not signature.in_sequences:
        raise InvalidRequest(model, "it keeps no state between requests: parameter 'sequence_id' has no meaning")
    return sequence


def _sequence_id(model: str, value: pb.InferParameter) -> int | str | None:
    """Clients send 0 and "" to say that there is no sequence."""
    kind = value.WhichOneof("parameter_choice")
    if kind in ("int64_param", "uint64_param"):
        return int(getattr(value, kind)) or None
    if kind == "string_param" and len(value.string_param) <= MAX_SEQUENCE_ID:
        return value.string_param or None
    raise InvalidRequest(
        model, f"parameter 'sequence_id' must be an integer or a string of at most {MAX_SEQUENCE_ID} characters"
    )


def _flag(model: str, key: str, value: pb.InferParameter) -> bool:
    if value.WhichOneof("parameter_choice") == "bool_param":
        return value.bool_param
    raise InvalidRequest(model, f"parameter '{key}' must be true or false (bool_param)")


class IgnoredParameters:
    """Counts ignored parameters, and logs each name once; all on the event loop's thread."""

    def __init__(self) -> None:
        self.number = 0
        self._logged: set[str] = set()

    def note(self, names: Iterable[str]) -> None:
        """A request had these."""
        for name in names:
            self.number += 1
            if name not in self._logged and len(self._logged) < _MOST_LOGGED:
                self._logged.add(name)
                log.debug("parameter ignored", name=one_line(name, 80))
