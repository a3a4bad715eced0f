"""The Open Inference Protocol over gRPC, in each front-end, beside HTTP.

This package is imported only if ``grpc_port`` is set, since grpcio and protobuf are an extra.
"""
