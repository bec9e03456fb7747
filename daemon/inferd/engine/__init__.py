"""Sole owner of OpenVINO. Numbered facts in the comments are those of docs/openvino-facts.md."""
