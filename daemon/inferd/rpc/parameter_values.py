"""The values of parameters."""

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest


def whole_number(model: str, where: str, key: str, value: pb.InferParameter) -> int:
    """The ``value`` of parameter ``key``, an integer of 0 or more. Raises InvalidRequest if it is another; ``where`` is
    such as ``input 'x': `` and "" for a request's."""
    kind = value.WhichOneof("parameter_choice")
    if kind in ("int64_param", "uint64_param") and (number := int(getattr(value, kind))) >= 0:
        return number
    raise InvalidRequest(
        model, f"{where}parameter '{key}' must be an integer of 0 or more (int64_param or uint64_param)"
    )
