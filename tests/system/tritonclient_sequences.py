"""Sends concurrent sequences over one stream with tritonclient and prints the responses.

    python tritonclient_sequences.py ADDRESS MODEL FRAMES.npy ID...

The file holds FP32 [sequences,frames,...], the model's only input for each frame. Printed is a JSON
list of each sequence's answers, [[first element of the first output, ...], ...].
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton


def main(address, model, file, *ids):
    sequences = np.load(file)
    last = sequences.shape[1] - 1
    answers = queue.Queue()
    client = triton.InferenceServerClient(address)
    client.start_stream(lambda result, error: answers.put(error or result))
    for number in range(last + 1):
        for sequence, frames in zip(ids, sequences, strict=True):
            tensor = triton.InferInput("input", frames[number].shape, "FP32").set_data_from_numpy(frames[number])
            client.async_stream_infer(
                model,
                [tensor],
                request_id=f"{sequence}/{number}",
                sequence_id=int(sequence) if sequence.isdecimal() else sequence,
                sequence_start=number == 0,
                sequence_end=number == last,
            )
    client.stop_stream()  # waits for the answers to all that was sent
    client.close()

    got = {sequence: [] for sequence in ids}
    while not answers.empty():
        answer = answers.get()
        if isinstance(answer, Exception):
            raise answer
        response = answer.get_response()
        sequence, _, number = response.id.partition("/")
        assert int(number) == len(got[sequence]), response.id
        got[sequence].append(float(answer.as_numpy(response.outputs[0].name).flat[0]))
    print(json.dumps([got[sequence] for sequence in ids]))


main(*sys.argv[1:])
