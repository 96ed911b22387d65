"""Records the golden vectors from a server on the bundled model.

    cd tests/vectors && PYTHONPATH=../support ../../.venv/bin/python record_vectors.py

Run the script only if an answer is meant to change, or to add a vector. Then say in the commit which answer changes and
why. Whatever depends on time is left out: durations, the grouping of steps into messages, the order of events of
different texts.
"""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import grpc
import torch
from google.protobuf.message import Message
from grpc_status import rpc_status
from harness import serving, stub
from recorded_answers import clear_times, normal
from sidelight.server.models.loader import load
from sidelight.v1 import attribution_service_pb2 as service
from vector_requests import Plan, plans
from vectors import FOLDER, INDEX, METHODS, Vector

SECONDS = 60


def exchange(service_stub: Any, plan: Plan) -> Vector:
    """Sends the requests of a plan, and waits for the end of the answer."""
    method = METHODS[plan.method]
    call = getattr(service_stub, plan.method)
    vector = Vector(plan.name, plan.method, plan.description, plan.requests)
    try:
        if plan.method == "Follow":
            responses = normal_follow(lock_step(call, plan))
        elif method.client_streaming:
            responses = normal_many(call(iter(plan.requests), timeout=SECONDS), plan.name.endswith("batch"))
        elif method.server_streaming:
            responses = normal(call(*plan.requests, timeout=SECONDS), plan.steps_of_a_message)
        else:
            responses = [without_times(call(*plan.requests, timeout=SECONDS))]
    except grpc.RpcError as error:
        vector.status = rpc_status.from_call(error)
        if vector.status is None:  # the error comes from gRPC itself
            raise
        return vector
    vector.responses = responses
    return vector


def without_times(message: Message) -> Message:
    """A message without durations, and without what depends on the libraries that are installed."""
    if isinstance(message, service.AlignResponse):
        clear_times(message.usage)
    elif isinstance(message, service.GetModelResponse):
        message.model.ClearField("word_boundaries")
    elif isinstance(message, service.ListModelsResponse):
        for model in message.models:
            model.ClearField("word_boundaries")
    return message


def lock_step(call: Any, plan: Plan) -> list[service.FollowResponse]:
    """Sends each event of a follow stream when the event before is answered, so that the answers do not depend on time.

    Raises grpc.RpcError.
    """
    events: queue.Queue[Message | None] = queue.Queue()
    answers = call(iter(events.get, None), timeout=SECONDS)
    responses: list[service.FollowResponse] = []
    for request, awaited in zip(plan.requests, plan.waits, strict=True):
        events.put(request)
        while awaited:
            responses.append(next(answers))
            if is_answer(responses, request, awaited):
                break
    events.put(None)
    return [*responses, *answers]


def is_answer(responses: list[service.FollowResponse], request: Any, awaited: str) -> bool:
    """Whether the last response completes the answer to a request: every token id has its step then."""
    if responses[-1].WhichOneof("event") != awaited:
        return False
    count = 0
    for response in reversed(responses):
        if response.WhichOneof("event") != "steps":
            break
        count += len(response.steps.steps)
    return count >= len(request.target.token_ids.ids)


def normal_follow(responses: list[service.FollowResponse]) -> list[service.FollowResponse]:
    """The responses of a follow stream with one step in each message, and without durations."""
    normalized: list[service.FollowResponse] = []
    for response in responses:
        if response.WhichOneof("event") == "steps":
            normalized.extend(service.FollowResponse(steps=service.Steps(steps=[s])) for s in response.steps.steps)
            continue
        clear_times_of(response)
        normalized.append(response)
    return normalized


def clear_times_of(response: service.FollowResponse | service.AttributeResponse) -> None:
    """Removes durations, where the event is the last of a stream."""
    if response.HasField("finished"):
        clear_times(response.finished.usage)


def normal_many(
    responses: Iterator[service.AttributeManyResponse], in_a_batch: bool
) -> list[service.AttributeManyResponse]:
    """The responses of a long stream, text after text, each alone or all in one batch; without durations."""
    flat: list[service.AttributeManyResponse] = []
    for response in responses:
        flat.extend(response.batch.responses if response.HasField("batch") else [response])
    single: list[service.AttributeManyResponse] = []
    for response in sorted(flat, key=lambda response: response.request_id):
        without_times(response.alignment) if response.HasField("alignment") else None
        if response.HasField("response"):
            for event in normal([response.response]):
                one = service.AttributeManyResponse(request_id=response.request_id, response=event)
                single.append(one)
        else:
            single.append(response)
    if in_a_batch:
        batch = service.AttributeManyBatch(responses=single)
        return [service.AttributeManyResponse(batch=batch)]
    return single


def main() -> None:
    """Records all vectors, and writes their files."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    names = []
    with serving(load()) as address, stub(address) as service_stub:
        for plan in plans():
            vector = exchange(service_stub, plan)
            vector.write()
            names.append(plan.name)
            status = "" if vector.status is None else f" {vector.status.message}"
            print(f"{plan.name}: {len(vector.responses)} responses{status}", flush=True)
    INDEX.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
