"""The names of settings on a command line and in the environment."""

ENV_PREFIX = "INFERD_"
CONFIG_VARIABLE = "INFERD_CONFIG"
# Read by the commands that call a daemon.
TOKEN_VARIABLE = "INFERD_TOKEN"  # noqa: S105 - a variable's name
# Set for each worker process by a daemon of several.
WORKER_VARIABLE = "INFERD_WORKER"


def flag_of(setting: str) -> str:
    """``--grpc-bind`` for ``grpc_bind``."""
    return "--" + setting.replace("_", "-")


def variable_of(setting: str) -> str:
    """``INFERD_GRPC_BIND`` for ``grpc_bind``."""
    return ENV_PREFIX + setting.upper()
