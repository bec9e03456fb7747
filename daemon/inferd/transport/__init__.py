"""gRPC's server on its completion queue, which is also what the event loop waits on.

``grpc`` publishes two servers, and both cost several times what the calls themselves do (docs/decisions/0024). Below
them is the completion queue of gRPC's core, which this package drives itself. What the rest of inferd sees is
:class:`~inferd.transport.call.ServerCall` and :class:`~inferd.transport.server.GrpcServer`.
"""
