"""Who is calling, what they may do, and the ports' own certificate. Knows neither gRPC nor HTTP."""
