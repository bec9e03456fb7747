"""Makes calls with tritonclient and prints their results as a JSON list.

    python tritonclient_calls.py ADDRESS sync|aio '[[METHOD, {ARGUMENT: VALUE, ...}], ...]'

The calls are made one after another. METHOD is one of the client's own; ``stream`` is a whole
stream of its own, of which the list of answers is what came. An input is [DATATYPE, VALUES] by
name; BYTES are strings of characters up to 255. What failed is its code and message.
"""

import asyncio
import inspect
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype


def infer_input(name, datatype, values):
    if datatype == "BYTES":
        array = np.vectorize(lambda text: text.encode("latin-1"), otypes=[object])(np.array(values, object))
    else:
        array = np.array(values, triton_to_np_dtype(datatype))
    tensor = sync.InferInput(name, array.shape, datatype)
    return tensor.set_data_from_numpy(np.asarray(array))


def arguments(given):
    """A call's arguments with its tensors as the client wants them."""
    made = dict(given)
    if "inputs" in given:
        made["inputs"] = [infer_input(name, *tensor) for name, tensor in given["inputs"].items()]
    if "outputs" in given:
        # By name, the number of classes.
        made["outputs"] = [
            sync.InferRequestedOutput(name, class_count=count) for name, count in dict(given["outputs"]).items()
        ]
    return made


def shown(value):
    """A client's answer as JSON can carry it."""
    if isinstance(value, sync.InferResult):
        response = value.get_response()
        return {
            "model": response.model_name,
            "version": response.model_version,
            "id": response.id,
            "parameters": {key: MessageToDict(choice) for key, choice in response.parameters.items()},
            "outputs": {o.name: [o.datatype, values(value.as_numpy(o.name))] for o in response.outputs},
        }
    if isinstance(value, InferenceServerException):
        return {"code": (value.status() or "").removeprefix("StatusCode."), "message": value.message()}
    return MessageToDict(value, preserving_proto_field_name=True) if isinstance(value, Message) else value


def values(array):
    if np_to_triton_dtype(array.dtype) == "BYTES":
        array = np.vectorize(lambda text: text.decode("latin-1"), otypes=[object])(array)
    return array.tolist()


async def call(client, method, given):
    if method == "stream":
        run = stream if isinstance(client, aio.InferenceServerClient) else stream_with_callback
        return [shown(answer) for answer in await run(client, **given)]
    try:
        if method == "async_infer":
            answers = queue.Queue()
            client.async_infer(callback=lambda result, error: answers.put(error or result), **arguments(given))
            return shown(answers.get())
        answer = getattr(client, method)(**arguments(given))
        return shown(await answer if inspect.isawaitable(answer) else answer)
    except InferenceServerException as error:
        return shown(error)


async def stream(client, requests, headers=None):
    async def written():
        for request in requests:
            yield arguments(request)

    answers = client.stream_infer(written(), headers=headers)
    return [error or result async for result, error in answers]


async def stream_with_callback(client, requests, headers=None):
    answers = []
    client.start_stream(lambda result, error: answers.append(error or result), headers=headers)
    for request in requests:
        client.async_stream_infer(**arguments(request))
    client.stop_stream()  # waits for the answers to all that was sent
    return answers


async def main(address, kind, calls):
    module = {"sync": sync, "aio": aio}[kind]
    client = module.InferenceServerClient(address)
    print(json.dumps([await call(client, method, given) for method, given in json.loads(calls)]))
    if (closing := client.close()) is not None:
        await closing


asyncio.run(main(*sys.argv[1:]))
