"""The wire: the only package that uses grpc."""

import os

# gRPC's core writes to stderr in its own format, for example for each address that it can't bind.
# What matters of that reaches inferd as an exception or a code. Read once, when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
