"""The Open Inference Protocol over gRPC, in each front-end, beside HTTP.

Nothing here is imported unless ``grpc_port`` is set: grpcio and protobuf are an extra.
"""
