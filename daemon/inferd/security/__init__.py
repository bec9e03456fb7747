"""Who is calling, what they may do, and what the ports prove themselves with. Knows neither gRPC nor HTTP."""
