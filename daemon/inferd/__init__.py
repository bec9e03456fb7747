"""inferd: an inference daemon that serves OpenVINO models over gRPC."""

__version__ = "0.1.0"
