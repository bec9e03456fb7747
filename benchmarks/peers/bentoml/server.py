"""Starts BentoML's server, `bentoml serve`, on service.py in this folder."""

import os
import sys
from pathlib import Path

from infer_pool import Settings

settings = Settings.read()
command = str(Path(sys.executable).with_name("bentoml"))
here = Path(__file__).parent
arguments = ["serve", "service:OpenVINOModels", "--host", "127.0.0.1", "--port", str(settings.port)]
os.execv(command, [command, *arguments, "--working-dir", str(here)])
