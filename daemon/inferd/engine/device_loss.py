"""Which of OpenVINO's messages mean that the device is lost, rather than that one run failed.

Based on messages in OpenVINO's issues and libraries; no GPU or NPU was available to test with.
"""

import re

# OpenCL's names, and its numbers as the GPU plugin prints them. CL_OUT_OF_RESOURCES may also mean too little memory,
# but the plugin warns that any later call may hang, so the context must not be used again.
_OPENCL = r"CL_OUT_OF_RESOURCES|CL_DEVICE_NOT_(AVAILABLE|FOUND)|CL_INVALID_(DEVICE|CONTEXT|COMMAND_QUEUE)\b"
_OPENCL_NUMBERS = r"error code: -(1|2|5|33|34|36)\b"
# Level Zero, used by the NPU plugin. DEVICE_LOST is "device hung, reset, was removed, or driver update occurred".
_LEVEL_ZERO = r"ZE_RESULT_ERROR_(DEVICE_LOST|DEVICE_REQUIRES_RESET|DEVICE_IN_LOW_POWER_STATE|UNINITIALIZED)\b"
_LOST = re.compile(rf"{_OPENCL}|{_OPENCL_NUMBERS}|{_LEVEL_ZERO}|device hung|device (is|was) (lost|removed)")


def means_lost(message: str) -> bool:
    """Whether a run that failed with ``message`` has lost its device."""
    return _LOST.search(message) is not None
