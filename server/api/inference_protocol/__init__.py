"""The Open Inference Protocol on the same port: requests become those of sidelight.v1 here, and take the same way.

service            InferenceService: which method answers which RPC; ready, metadata
infer              ModelInfer: all texts of a request, one response
stream_infer       ModelStreamInfer: many requests on a stream, a response for each step
starting           the texts of a request go to the engine
inference_request  a ModelInferRequest becomes an AttributeRequest for each text
parameters         the table of parameters, each a field of AttributeRequest
outputs            the table of output tensors, and how they are made
responses          outputs and errors become responses
tensors            the forms of tensors, in and out
"""

from .service import INFERENCE_SERVICE, InferenceService

__all__ = ["INFERENCE_SERVICE", "InferenceService"]
