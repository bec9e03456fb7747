"""inferd beside the servers that people would pick instead, beside OpenVINO's own benchmark, and beside two echoes.

    python -m benchmarks.peers --rounds 5 --write

The same models, inputs, precision and threads for all; one client process; every round visits every server with
every model for a few seconds, so that other work on the machine meets all alike, and ratios are taken within a round.
docs/performance.md says how, and shows what came out.
"""
