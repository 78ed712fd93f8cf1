"""xAI's gRPC API (xai-api.md 23): one file for each service. Messages come and go as bytes; sockets are in serving/grpc.py."""
