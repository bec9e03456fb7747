"""Generated from protos/ by .ci/generate; do not edit."""
