"""What test_systemd.py has done in a booted tree: runs there as root, and writes down what it saw.

It asserts nothing: each step's facts go to /out/facts.json, and the tests look at those. Runs on the tree's own
Python; whatever speaks gRPC runs as a command of the installed inferd's.
"""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path

BIN = Path("/opt/inferd/bin")
REPOSITORY = Path("/srv/inferd/models")
SETTINGS = Path("/etc/inferd")
UNITS = Path("/etc/systemd/system")
PATIENCE = 40.0

# Short times: a hang is to be found while somebody watches.
QUICK = "[Service]\nWatchdogSec=4\nTimeoutAbortSec=1\n"

ASK = """
import json, sys
import numpy as np
from inferd.rpc.client import InferenceClient
with InferenceClient("127.0.0.1:8001") as client:
    model, name, dtype, value = sys.argv[1:]
    shape = [] if model == "busy" else [1]
    given = {name: np.full(shape, int(value), dtype)}
    print(json.dumps({name: array.tolist() for name, array in client.infer(model, given).items()}))
"""

Facts = dict[str, object]


def run(*command: object, timeout: float = 90.0) -> Facts:
    """The command's exit status and all that it wrote."""
    began = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    return {"status": done.returncode, "said": done.stdout, "seconds": round(time.monotonic() - began, 2)}


def shown(unit: str = "inferd") -> dict[str, str]:
    """The unit as systemd sees it."""
    names = "ActiveState,SubState,Result,MainPID,NRestarts,StatusText,ExecMainStatus,ExecMainCode,User,UnitFileState"
    lines = str(run("systemctl", "show", unit, "--property", names)["said"]).splitlines()
    return dict(line.split("=", 1) for line in lines)


def until(holds: Callable[[dict[str, str]], bool], unit: str = "inferd") -> dict[str, str]:
    """The unit once that holds of it, or as it is when patience ends."""
    end = time.monotonic() + PATIENCE
    while not holds(seen := shown(unit)) and time.monotonic() < end:
        # What is waited for is systemd, which has no way to say it that needs no library.
        time.sleep(0.1)
    return seen


def ask(model: str, name: str, dtype: str, value: int) -> subprocess.Popen[str]:
    command = [BIN / "python", "-c", ASK, model, name, dtype, str(value)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def answer(model: str = "echo") -> str:
    """What the daemon answers to a 7, as text."""
    return ask(model, "x", "int64", 7).communicate()[0].strip()


def journal(unit: str = "inferd") -> str:
    return str(run("journalctl", "--no-pager", "--output=cat", "--unit", unit)["said"])


def settings(name: str = "inferd.env", **changed: str) -> None:
    values = {"MODEL_REPOSITORY": str(REPOSITORY), "TUNING": "off", **changed} if name == "inferd.env" else changed
    (SETTINGS / name).write_text("".join(f"INFERD_{key}={value}\n" for key, value in values.items()))


def drop_in(unit: str, text: str) -> None:
    folder = UNITS / f"{unit}.service.d"
    folder.mkdir()
    (folder / "test.conf").write_text(text)


# -- the steps, in order ------------------------------------------------------------------------------------


def install() -> Facts:
    run("python3", "-m", "venv", "--without-pip", "/opt/inferd")
    os.environ["PYTHONPATH"] = "/opt/site-packages"
    wheel = next(Path("/wheel").iterdir())
    pip = run(BIN / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    del os.environ["PYTHONPATH"]
    (BIN.parent / "lib/python3.11/site-packages/dependencies.pth").write_text("/opt/site-packages\n")
    REPOSITORY.mkdir(parents=True)
    shutil.copytree("/models/echo", REPOSITORY / "echo")
    shutil.copytree("/models/busy", REPOSITORY / "busy")
    units = run(BIN / "inferd", "install-units")
    example = (SETTINGS / "inferd.env").read_text()
    verified = [run("systemd-analyze", "verify", UNITS / unit) for unit in ("inferd.service", "inferd@blue.service")]
    settings()
    drop_in("inferd", QUICK)
    run("systemctl", "daemon-reload")
    return {"pip": pip, "units": units, "example": example, "verified": verified}


def start() -> Facts:
    started = run("systemctl", "start", "inferd")
    seen = shown()
    metrics = urllib.request.urlopen("http://127.0.0.1:8002/metrics").read().decode()
    return {
        "started": started,
        "shown": seen,
        "answer": answer(),
        "process": [line for line in metrics.splitlines() if line.startswith("process_")],
        "cache": [path.name for path in Path("/var/cache/inferd").iterdir()],
    }


def reload() -> Facts:
    before = shown()
    shutil.copytree("/models/echo", REPOSITORY / "newcomer")
    reloaded = run("systemctl", "reload", "inferd")
    after = until(lambda seen: seen["StatusText"].startswith("serving 3"))
    return {"before": before, "reloaded": reloaded, "after": after, "answer": answer("newcomer")}


def kill() -> Facts:
    before = shown()
    os.kill(int(before["MainPID"]), signal.SIGKILL)
    after = until(lambda seen: seen["ActiveState"] == "active" and seen["MainPID"] != before["MainPID"])
    return {"before": before, "after": after, "answer": answer()}


def hang() -> Facts:
    before = shown()
    began = time.monotonic()
    os.kill(int(before["MainPID"]), signal.SIGSTOP)
    after = until(lambda seen: seen["ActiveState"] == "active" and seen["MainPID"] not in (before["MainPID"], "0"))
    return {
        "before": before,
        "after": after,
        "answer": answer(),
        "seconds": time.monotonic() - began,
        "journal": journal(),
    }


def stop() -> Facts:
    client = ask("busy", "steps", "int32", STEPS)
    until_asked()
    stopped = run("systemctl", "stop", "inferd")
    return {"stopped": stopped, "shown": shown(), "answer": client.communicate()[0].strip(), "journal": journal()}


def until_asked() -> None:
    """Return once the model `busy` computes."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        text = urllib.request.urlopen("http://127.0.0.1:8002/metrics").read().decode()
        if any(line.startswith(RUNNING) and float(line.split()[-1]) for line in text.splitlines()):
            return
        time.sleep(0.05)


def misconfigure() -> Facts:
    settings(GRPC_BIND="nowhere")
    started = run("systemctl", "start", "inferd")
    seen = until(lambda seen: seen["ActiveState"] == "failed")
    settings()
    return {"started": started, "shown": seen, "journal": journal()}


def secure() -> Facts:
    store, kept = Path("/etc/credstore"), UNITS / "inferd.service.d/secure.conf"
    store.mkdir(mode=0o700, exist_ok=True)
    for name in ("cert", "key"):
        shutil.copy(f"/certificates/{name}.pem", store / f"inferd.tls-{name}")
        (store / f"inferd.tls-{name}").chmod(0o600)
    # As docs/systemd.md has it.
    kept.write_text("[Service]\nEnvironment=INFERD_TLS_CERT=%d/inferd.tls-cert INFERD_TLS_KEY=%d/inferd.tls-key\n")
    run("systemctl", "daemon-reload")
    started = run("systemctl", "start", "inferd")
    context = ssl.create_default_context(cafile="/certificates/ca.pem")
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", 8001))
    with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
        subject = wrapped.getpeercert()
    stopped = run("systemctl", "stop", "inferd")
    kept.unlink()
    shutil.rmtree(store)
    run("systemctl", "daemon-reload")
    return {"started": started, "certificate": subject, "stopped": stopped}


def roll_over() -> Facts:
    for colour, port in (("blue", 8012), ("green", 8022)):
        settings(f"{colour}.env", REUSE_PORT="true", METRICS_BIND=f"127.0.0.1:{port}")
    started = run("systemctl", "enable", "--now", "inferd@blue")
    client = subprocess.Popen(
        [BIN / "python", "-c", KEEP_ASKING], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    client.stdout.readline()
    over = run(BIN / "inferd", "rollover", "--from", "inferd@blue", "--to", "inferd@green")
    answered = client.communicate("")[0].strip()
    states = {colour: shown(f"inferd@{colour}") for colour in ("blue", "green")}
    # What would serve fewer models must not take over.
    settings("blue.env", REUSE_PORT="true", METRICS_BIND="127.0.0.1:8012", MODEL_REPOSITORY="/models/worse")
    worse = run(BIN / "inferd", "rollover", "--from", "inferd@green", "--to", "inferd@blue")
    after = {colour: shown(f"inferd@{colour}") for colour in ("blue", "green")}
    return {"started": started, "over": over, "answered": answered, "states": states, "worse": worse, "after": after}


STEPS = 1000
RUNNING = 'inferd_in_flight_requests{model="busy"'
KEEP_ASKING = """
import collections, json, sys, threading
import grpc
from inferd._pb import open_inference_pb2 as pb
policy = {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 3,
          "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}
config = {"methodConfig": [{"name": [{"service": "inference.GRPCInferenceService"}], "retryPolicy": policy}]}
channel = grpc.insecure_channel("127.0.0.1:8001", [("grpc.service_config", json.dumps(config))])
ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
request = pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(8)])
request.inputs.add(name="x", datatype="INT64", shape=[1])
over, codes = threading.Event(), collections.Counter()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
while not over.is_set():
    try:
        ask(request.SerializeToString(), timeout=20)
        codes["OK"] += 1
    except grpc.RpcError as error:
        codes[error.code().name] += 1
    if codes.total() == 1:
        print("begun", flush=True)
    over.wait(0.01)
print(json.dumps(codes))
"""


def main() -> None:
    facts: dict[str, Facts] = {}
    for step in (install, start, reload, kill, hang, stop, misconfigure, secure, roll_over):
        began = time.monotonic()
        try:
            facts[step.__name__] = step()
        except Exception:
            # The steps that follow are worth a look all the same.
            facts[step.__name__] = {"raised": traceback.format_exc(), "journal": journal()}
        print(f"{step.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    Path("/out/facts.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
