"""The models of a server are listed page by page, the default model first."""

from __future__ import annotations

import grpc
import pytest
from harness import request, serving, stub
from sidelight.v1 import attribution_service_pb2 as pb


def test_a_page_of_models_is_followed_by_the_next(bundled, zoo):
    with serving(zoo("gpt2"), bundled) as address, stub(address) as service:
        first = service.ListModels(pb.ListModelsRequest(page_size=1), timeout=30)
        second = service.ListModels(pb.ListModelsRequest(page_size=1, page_token=first.next_page_token), timeout=30)
        assert [model.name for page in (first, second) for model in page.models] == ["gpt2", "tatoeba-en-de"]
        assert first.models[0].default
        assert not second.next_page_token
        with pytest.raises(grpc.RpcError) as raised:
            service.ListModels(pb.ListModelsRequest(page_token="nothing"), timeout=30)
        assert "page_token" in raised.value.details()


def test_a_model_says_how_many_tokens_a_request_may_write(bundled_server):
    with stub(bundled_server) as service:
        most = service.GetModel(pb.GetModelRequest(), timeout=30).model.limits.max_new_tokens
        message = request("A dog.")
        message.decoding.max_new_tokens = most
        assert list(service.Attribute(message, timeout=60))[-1].HasField("finished")
        message.decoding.max_new_tokens = most + 1
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(message, timeout=60))
        assert f"from 1 to {most}" in raised.value.details()
