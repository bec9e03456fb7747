"""Whether a new process could use a device that this one has lost.

The driver may have given up on this process only, which can't be told from inside. So a child process, under the
limits of a preflight, compiles a minimal model for the device and runs it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from inferd.config.model import ModelConfig
from inferd.content import Bounds, FileSet
from inferd.engine.cache import BlobCache
from inferd.engine.preflight import COMMAND, Preflight, PreflightLimits
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, LoadFailed

# ``x + x``, which no device optimises away.
_NETWORK = """<?xml version="1.0"?>
<net name="trial" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1">
      <data shape="1,4" element_type="f32"/>
      <output><port id="0" precision="FP32" names="x"><dim>1</dim><dim>4</dim></port></output>
    </layer>
    <layer id="1" name="y" type="Add" version="opset1">
      <data auto_broadcast="numpy"/>
      <input>
        <port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port>
        <port id="1" precision="FP32"><dim>1</dim><dim>4</dim></port>
      </input>
      <output><port id="2" precision="FP32" names="y"><dim>1</dim><dim>4</dim></port></output>
    </layer>
    <layer id="2" name="result" type="Result" version="opset1">
      <input><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port></input>
    </layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
    <edge from-layer="0" from-port="0" to-layer="1" to-port="1"/>
    <edge from-layer="1" from-port="2" to-layer="2" to-port="0"/>
  </edges>
</net>
"""


class DeviceProbe:
    """Lets child processes try devices, one at a time, each under ``limits``; ``command`` as for a Preflight."""

    def __init__(self, limits: PreflightLimits, command: Sequence[str] = COMMAND) -> None:
        # Without a cache, as a cached blob would not show that the device compiles.
        self._preflight = Preflight(BlobCache(Path("nowhere"), 0), limits, command)

    def unusable(self, device: str) -> str:
        """Why a child could not use ``device``, such as ``GPU.1``; "" if it could. Blocks until known. Never raises."""
        try:
            with tempfile.TemporaryDirectory(prefix="inferd-") as folder:
                network = Path(folder) / "model.xml"
                network.write_text(_NETWORK)
                file_set = FileSet(network, None, Bounds(Path(folder)))
                config = ModelConfig.model_validate({"devices": [device]})
                self._preflight.run(ModelSource(f"trial of {device}", 1, file_set, config))
        except LoadFailed as error:
            return error.problem
        except InferdError as error:
            return str(error)
        except OSError as error:
            return f"it can't be tried: {error.strerror}"
        return ""

    def close(self) -> None:
        """End the child, and any wait for it. Harmless when called again."""
        self._preflight.close()
