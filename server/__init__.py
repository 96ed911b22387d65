"""The sidecar: loads models, decodes, captures attention and serves it over gRPC.

A request's way: api -> engine -> runner -> sampling, models -> layers -> capture, text; `capture` calls the kernels.
The client imports nothing of the server but `entrypoints`, and only when a command of the server runs.

entrypoints              the commands `serve` and `kernels`
api                      gRPC and protobuf
engine                   which request runs when
runner                   forward passes of sequences
sampling                 the next tokens
models                   loading models, and the ways to run them
checkpoint               the files of a model
layers                   replacements of single layers
capture                  attention rows while a model runs
text                     tokenizer and detokenizer
settings                 flags, environment, file and defaults
operations               what operators decide and see: certificates, tokens, metrics, traces, logs
request, policy, errors, memory, transfer, transformers_versions    what these share
"""
