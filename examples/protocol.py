"""The protocol's messages and services, loaded from protos/ without generated files. Shared by the Python examples.

To ship a program without grpcio-tools, generate the modules once instead:
    python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. open_inference.proto model_config.proto
"""

import sys
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "protos"))

messages, services = grpc.protos_and_services("open_inference.proto")
