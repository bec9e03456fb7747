"""Messages about a lost device are distinguished from messages about one failed run."""

import pytest

from inferd.engine.device_loss import means_lost
from inferd.engine.slot import error_summary

# As they were reported in OpenVINO's issues, or as its libraries hold them.
LOST = [
    "[GPU] clFlush, error code: -5 CL_OUT_OF_RESOURCES",
    "[GPU] clFlush, error code: -5",
    "[GPU] clWaitForEvents, error code: -36 CL_INVALID_COMMAND_QUEUE",
    "[GPU] clEnqueueNDRangeKernel, error code: -2 CL_DEVICE_NOT_AVAILABLE",
    "L0 zeFenceHostSynchronize result: ZE_RESULT_ERROR_DEVICE_LOST, code 0x70000001 - device hung, reset, was removed, "
    "or driver update occurred",
    "L0 zeCommandQueueExecuteCommandLists result: ZE_RESULT_ERROR_UNINITIALIZED, code 0x78000001",
]
NOT_LOST = [
    "Infer Request was canceled",
    "Infer Request is busy",
    "[GPU] clEnqueueMapBuffer, error code: -54 CL_INVALID_WORK_GROUP_SIZE",
    "[GPU] clBuildProgram, error code: -11 CL_BUILD_PROGRAM_FAILURE",
    "[GPU] Exceeded max size of memory object allocation: requested 8589934592 bytes",
    "L0 pfnCreate2 result: ZE_RESULT_ERROR_UNSUPPORTED_FEATURE, code 0x78000003",
    "the requested shape [3,2] can't be broadcast",
    "",
]


@pytest.mark.parametrize("message", LOST)
def test_what_says_that_the_device_is_gone_is_understood(message: str) -> None:
    assert means_lost(message)


@pytest.mark.parametrize("message", NOT_LOST)
def test_what_says_that_a_run_failed_is_not_taken_for_it(message: str) -> None:
    assert not means_lost(message)


def test_the_sentence_that_is_kept_of_a_message_is_the_one_that_says_so() -> None:
    error = RuntimeError(
        "Exception from src/inference/src/cpp/infer_request.cpp:245:\n"
        "Exception from src/plugins/intel_gpu/src/runtime/ocl/ocl_common.hpp:70:\n"
        "[GPU] CL_OUT_OF_RESOURCES exception.\n"
        "\tDue to a driver bug, any subsequent OpenCL API call may cause the application to hang,\n"
        "\tTry a smaller batch size.\n"
    )
    assert error_summary(error) == "[GPU] CL_OUT_OF_RESOURCES exception."
