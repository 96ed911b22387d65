"""gRPC and protobuf: the only package of the server that knows them.

server               a grpc.aio server with its engines, started and stopped in order
addresses            where the server listens: checked and held before models load
service              AttributionService: the RPCs
standard_services    gRPC's health and reflection services
calls                the calls under way, and what each waits for
status               an error becomes a status with details
parsing              strict protobuf parsing
validation           an AttributeRequest becomes a job
capture_validation   a Capture becomes a plan
converters           events become messages
"""
