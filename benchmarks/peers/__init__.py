"""Compares inferd with other model servers, OpenVINO's own benchmark_app, and two echoes.

    python -m benchmarks.peers --rounds 5 --write

All serve the same models, inputs, precision and threads, and one client process asks them. Every round visits every
server with every model for a few seconds, so that other work on the machine affects all alike, and ratios are taken
within a round. docs/performance.md has the method and the results.
"""
