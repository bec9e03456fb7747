"""The wire: sole owner of grpc."""

import os

# gRPC's core writes to stderr in a form of its own, on each address it can't bind for one.
# What matters of it reaches us as an exception or a code. Read once, when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
