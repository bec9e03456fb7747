"""Inputs and outputs in shared memory: the request parameters that say where, and the response parameters.

An input is ``shared_memory_byte_size`` bytes from ``shared_memory_offset`` on of the region ``shared_memory_region``,
exactly; an output may use less than that.
"""

from collections.abc import Callable, Mapping, Sequence

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.requests import Request
from inferd.rpc.parameter_values import whole_number
from inferd.shared_memory.regions import Span
from inferd.tensors import DType, Placed, Shape, Tensor, TensorSpec, elements

REGION, NBYTES, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
NAMES = (REGION, NBYTES, OFFSET)

# Every byte of these is checked before the request waits, so they are copied out at once; as are numbers that must be
# in a device's range, which a client must not change after the check.
_COPIED_DTYPES = (DType.BOOL, DType.BYTES)

OutputBindings = tuple[tuple[int, Placed], ...]
"""The outputs that go into shared memory, by port index, as :class:`inferd.requests.Request` has them."""

Locate = Callable[[Span], Placed]


class ShmBindings:
    """The tensors of one request in shared memory: ``shared`` says that an input is there, ``taken_out`` counts the
    bytes copied from there, which are received bytes like those from the wire. ``locate`` finds the memory."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self.into: OutputBindings = ()
        self.shared = False
        self.taken_out = 0

    def input(
        self, model: str, spec: TensorSpec, shape: Shape, item: pb.ModelInferRequest.InferInputTensor, most: int
    ) -> Placed | bytes | None:
        """The place of ``item``, or its content if that must be checked now; None if it is not in shared memory.

        ``most`` limits the bytes to copy out. Raises what ``locate`` does and InvalidRequest.
        """
        what = f"input '{spec.name}'"
        if (placed := self._placed(model, what, item.parameters)) is None:
            return None
        if item.contents.ListFields():
            raise InvalidRequest(model, f"{what} has contents and is in shared memory; expected one of them")
        if spec.dtype is not DType.BYTES:
            expected = elements(shape) * spec.dtype.itemsize
            if placed.nbytes != expected:
                raise InvalidRequest(
                    model,
                    f"{what} of shape {list(shape)} {spec.dtype.wire} must be {expected} bytes, got {placed.nbytes} "
                    f"as {NBYTES}",
                )
        self.shared = True
        if spec.dtype not in _COPIED_DTYPES and spec.checked is None:
            return placed
        if placed.nbytes > most:
            raise InvalidRequest(model, f"{what} would be {placed.nbytes} bytes; at most {most} are allowed")
        self.taken_out += placed.nbytes
        return placed.copied()

    def output(
        self, model: str, index: int, spec: TensorSpec, item: pb.ModelInferRequest.InferRequestedOutputTensor
    ) -> None:
        """Note where ``item``, the output of that port index, must go, if anywhere. Raises likewise."""
        what = f"output '{spec.name}'"
        if (placed := self._placed(model, what, item.parameters)) is None:
            return
        if spec.static_shape is not None and spec.dtype is not DType.BYTES:
            check_fits(model, spec, placed.nbytes, elements(spec.static_shape) * spec.dtype.itemsize)
        self.into += ((index, placed),)

    def _placed(self, model: str, what: str, parameters: Mapping[str, pb.InferParameter]) -> Placed | None:
        region, numbers = None, {}
        for key, value in parameters.items():
            if key == REGION:
                if value.WhichOneof("parameter_choice") != "string_param":
                    raise InvalidRequest(model, f"{what}: parameter '{key}' must be a string (string_param)")
                region = value.string_param
            elif key in NAMES:
                numbers[key] = whole_number(model, f"{what}: ", key, value)
        if region is None and not numbers:
            return None
        if region is None or NBYTES not in numbers:
            raise InvalidRequest(model, f"{what}: {REGION} and {NBYTES} go together")
        return self._locate(Span(region, numbers.get(OFFSET, 0), numbers[NBYTES]))


def refuse(model: str, what: str, parameters: Mapping[str, pb.InferParameter]) -> None:
    """Raises InvalidRequest if ``what``, an input or an output, is in shared memory, as that is off."""
    if any(key in NAMES for key in parameters):
        raise InvalidRequest(model, f"{what}: shared memory is not enabled on this server")


def count_in_shm(message: pb.ModelInferRequest) -> int:
    """How many inputs are in shared memory."""
    return sum(REGION in item.parameters for item in message.inputs)


def answer(
    model: str,
    version: str,
    request: Request,
    specs: Sequence[TensorSpec],
    outputs: Sequence[Tensor],
    raw: Callable[[Tensor], bytes],
) -> pb.ModelInferResponse:
    """The response to a request with outputs in shared memory, which are written there. ``raw`` makes a tensor's bytes.

    Raises InvalidRequest if one does not fit, and the errors of writing.
    """
    response = pb.ModelInferResponse(model_name=model, model_version=version, id=request.id)
    into = dict(request.into)
    for index, spec, tensor in zip(request.outputs, specs, outputs, strict=True):
        item = response.outputs.add(name=spec.name, datatype=spec.dtype.wire, shape=tensor.shape)
        if (placed := into.get(index)) is None:
            response.raw_output_contents.append(raw(tensor))
            continue
        # Clients count the entries: one for each output.
        response.raw_output_contents.append(b"")
        describe(item, placed, _put(model, spec, tensor, placed, raw))
    return response


def describe(item: pb.ModelInferResponse.InferOutputTensor, where: Placed | Span, nbytes: int) -> None:
    """Set the parameters of ``item``, in a response, to say that ``nbytes`` of it are ``where``."""
    item.parameters[REGION].string_param = where.region
    item.parameters[NBYTES].int64_param = nbytes
    if where.offset:
        item.parameters[OFFSET].int64_param = where.offset


def _put(model: str, spec: TensorSpec, tensor: Tensor, placed: Placed, raw: Callable[[Tensor], bytes]) -> int:
    """Write ``tensor`` to its place, unless it was computed there; returns its bytes."""
    data = tensor.data
    if isinstance(data, Placed):
        return elements(tensor.shape) * spec.dtype.itemsize
    if not (isinstance(data, memoryview) and data.c_contiguous):
        data = raw(tensor)
    check_fits(model, spec, placed.nbytes, memoryview(data).nbytes)
    placed.write(data)
    return memoryview(data).nbytes


def check_fits(model: str, spec: TensorSpec, room: int, nbytes: int) -> None:
    """Raises InvalidRequest if an output is larger than the ``room`` for it, in bytes."""
    if nbytes > room:
        raise InvalidRequest(model, f"output '{spec.name}' is {nbytes} bytes; its {NBYTES} is {room}")
