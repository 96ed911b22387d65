"""The sidecar: loads models, decodes, captures attention and serves it over gRPC.

Data flows one way through it: service -> engine -> decoding -> capture -> kernels. Nothing here is imported by the
client but `sidelight.server.entrypoints.serve`, and that only when someone asks to serve.
"""
