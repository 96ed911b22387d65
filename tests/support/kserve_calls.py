"""Calls of KServe's client, in a process and an environment of its own: `python kserve_calls.py ADDRESS TEXT…`.

Prints what the client got as JSON. KServe asks for protobuf 6, and Sidelight for protobuf 7.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput

MODEL = "tatoeba-en-de"


async def call(address: str, texts: list[str]) -> dict[str, object]:
    async with InferenceGRPCClient(address) as client:
        said: dict[str, object] = {
            "live": await client.is_server_live(),
            "server": await client.is_server_ready(),
            "model": await client.is_model_ready(MODEL),
        }
        for name, is_raw in (("contents", False), ("raw", True)):
            tensor = InferInput("text_input", [len(texts)], "BYTES")
            tensor.set_data_from_numpy(np.array(texts, object), binary_data=is_raw)
            wanted = [RequestedOutput(each) for each in ("text_output", "links", "cross_attention")]
            request = InferRequest(MODEL, [tensor], request_outputs=wanted, parameters={"max_new_tokens": 4})
            response = await client.infer(request)
            outputs = {output.name: output.as_numpy() for output in response.outputs}
            said[name] = {
                each: array.tolist() if array.dtype != object else [text_of(value) for value in array]
                for each, array in outputs.items()
            }
        return said


def text_of(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(call(sys.argv[1], sys.argv[2:]))))
