"""gRPC's server on its completion queue, which is also what the event loop waits on.

``grpc`` publishes two servers, and both cost several times what the calls themselves do (docs/decisions/0024). Below
them is the completion queue of gRPC's core, which this package drives itself. What the rest of inferd sees is
:class:`~inferd.transport.call.ServerCall` and :class:`~inferd.transport.server.GrpcServer`.
"""

import os

# gRPC would read and write sockets on threads of its own, and hand each event over to the thread that polls the queue.
# Without that experiment, as gRPC calls it, the polling thread does it all: half of what a call costs. Read once, when
# gRPC's core starts, so it is set before anything uses that; who sets it decides.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
