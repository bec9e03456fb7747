"""Child processes get the environment that they need, and no secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.child_environment import child_environment

NEEDED = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONMALLOC"),
    *(
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "OPENVINO_LOG_LEVEL",
        "OV_CPU_DEBUG",
        "XDG_CACHE_HOME",
        "ZE_FLAT_DEVICE",
    ),
)
SECRET = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DATABASE_URL", "PGPASSWORD", "GITHUB_TOKEN", "HTTPS_PROXY"),
    *("INFERD_TOKENS_FILE", "INFERD_TOKEN", "INFERD_TLS_KEY", "OTEL_EXPORTER_OTLP_HEADERS", "SSH_AUTH_SOCK"),
    *(
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "CREDENTIALS_DIRECTORY",
        "SSH_AUTH_SOCK",
        "PYTHON_KEYRING_PASSWORD",
    ),
    *("OPENVINO_API_KEY", "OV_TOKEN", "path", "XDG_SECRET"),
)


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_child_needs_it_gets(name: str) -> None:
    assert child_environment({name: "value"}) == {name: "value"}


@pytest.mark.parametrize("name", SECRET)
def test_what_is_a_secret_or_nobodys_need_it_does_not(name: str) -> None:
    assert child_environment({name: "value", "PATH": "/bin"}) == {"PATH": "/bin"}


@given(st.dictionaries(st.text(), st.text()), st.text(), st.sampled_from(["TOKEN", "Password", "_SECRET_", "api_key"]))
def test_it_gives_no_more_than_there_is_and_no_name_of_a_secret(given: dict[str, str], name: str, secret: str) -> None:
    got = child_environment(given | {f"PYTHON{name}{secret}": "secret"})
    assert got.items() <= given.items()
