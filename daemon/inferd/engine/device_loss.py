"""Which of OpenVINO's messages say that the device itself is gone, and not that one run failed.

Written from messages in OpenVINO's issues and in its libraries; no GPU or NPU was at hand to lose.
"""

import re

# OpenCL's names, and its numbers as the GPU's plugin prints them. CL_OUT_OF_RESOURCES can mean too little memory,
# too, but by the plugin's own words any call after it may hang: nothing more must be asked of that context.
_OPENCL = r"CL_OUT_OF_RESOURCES|CL_DEVICE_NOT_(AVAILABLE|FOUND)|CL_INVALID_(DEVICE|CONTEXT|COMMAND_QUEUE)\b"
_OPENCL_NUMBERS = r"error code: -(1|2|5|33|34|36)\b"
# Level Zero's, of the NPU's plugin: "device hung, reset, was removed, or driver update occurred" is its first.
_LEVEL_ZERO = r"ZE_RESULT_ERROR_(DEVICE_LOST|DEVICE_REQUIRES_RESET|DEVICE_IN_LOW_POWER_STATE|UNINITIALIZED)\b"
_LOST = re.compile(rf"{_OPENCL}|{_OPENCL_NUMBERS}|{_LEVEL_ZERO}|device hung|device (is|was) (lost|removed)")


def means_lost(message: str) -> bool:
    """Whether a run that failed with ``message`` says that its device is gone."""
    return _LOST.search(message) is not None
