"""The daemon's settings from all their sources, with real flags, variables and files."""

import argparse
import os
from pathlib import Path

import pytest

from inferd.cli import settings_flags
from inferd.config import daemon
from inferd.config.daemon import Settings, exposures, split_host_port, unknown_variables
from inferd.errors import ConfigurationError


@pytest.fixture(autouse=True)
def no_variables_of_this_machine(monkeypatch):
    for variable in [v for v in os.environ if v.upper().startswith("INFERD_")]:
        monkeypatch.delenv(variable)
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def loaded(*flags: str, file: Path | None = None) -> Settings:
    """Settings from ``flags`` and ``file``, as on the command line."""
    parser = argparse.ArgumentParser()
    settings_flags.add_arguments(parser)
    return daemon.load(file, vars(parser.parse_args(flags)))


def problem(*flags: str, file: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as raised:
        loaded(*flags, file=file)
    return str(raised.value)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "inferd.toml"


# -- precedence -------------------------------------------------------------------


def test_the_default_applies_without_a_value():
    assert loaded("--model-repository", "models").queue_max_length == 1024


def test_the_file_beats_the_default(file):
    file.write_text('model_repository = "models"\nqueue_max_length = 1')
    assert loaded(file=file).queue_max_length == 1


def test_the_variable_beats_the_file(file, monkeypatch):
    file.write_text('model_repository = "models"\nqueue_max_length = 1')
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGTH", "2")
    assert loaded(file=file).queue_max_length == 2


def test_the_flag_beats_the_variable(file, monkeypatch):
    file.write_text('model_repository = "models"\nqueue_max_length = 1')
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGTH", "2")
    assert loaded("--queue-max-length", "3", file=file).queue_max_length == 3


def test_a_flag_equal_to_the_default_still_beats_the_variable(monkeypatch):
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGTH", "2")
    assert loaded("--model-repository", "models", "--queue-max-length", "1024").queue_max_length == 1024


def test_a_switch_can_be_turned_off_again_by_flag(monkeypatch):
    monkeypatch.setenv("INFERD_REPOSITORY_CONTROL", "true")
    assert loaded("--model-repository", "models").repository_control is True
    assert loaded("--model-repository", "models", "--no-repository-control").repository_control is False


def test_sources_are_combined_key_by_key(file, monkeypatch):
    file.write_text("cpu_threads = 5")
    monkeypatch.setenv("INFERD_LOG_LEVEL", "debug")
    settings = loaded("--model-repository", "models", file=file)
    assert (settings.model_repository, settings.cpu_threads, settings.log_level) == (Path("models"), 5, "debug")


def test_every_setting_can_be_given_as_flag_variable_and_file_key(file, monkeypatch):
    given = loaded("--model-repository", "models").model_dump(mode="json")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if not isinstance(value, bool)]
    assert loaded(*flags, "--no-repository-control").model_dump(mode="json") == given

    values = {name: f"'{v}'" if isinstance(v, str) else str(v).lower() for name, v in given.items()}
    file.write_text("\n".join(f"{name} = {value}" for name, value in values.items()))
    assert loaded(file=file).model_dump(mode="json") == given

    for name, value in given.items():
        monkeypatch.setenv(f"INFERD_{name.upper()}", str(value))
    assert loaded().model_dump(mode="json") == given


def test_a_path_is_not_changed():
    for path in ("a,b", '"quoted"', "[1]", "with space", "{}"):
        assert loaded("--model-repository", path).model_repository == Path(path)


def test_settings_do_not_change():
    settings = loaded("--model-repository", "models")
    with pytest.raises(ValueError, match="frozen"):
        settings.queue_max_length = 3


# -- a bad value names where it came from -----------------------------------------

ALLOWED = "queue_max_length: got 'many'; allowed: a whole number of 1..1000000"


def test_a_bad_flag_is_named():
    assert (
        problem("--model-repository", "models", "--queue-max-length", "many") == f"flag --queue-max-length: {ALLOWED}"
    )


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGTH", "many")
    assert problem("--model-repository", "models") == f"variable INFERD_QUEUE_MAX_LENGTH: {ALLOWED}"


def test_a_bad_variable_is_named_as_it_is_spelled(monkeypatch):
    monkeypatch.setenv("inferd_queue_max_length", "many")
    assert problem("--model-repository", "models") == f"variable inferd_queue_max_length: {ALLOWED}"


def test_a_bad_value_in_the_file_names_the_file(file):
    file.write_text('queue_max_length = "many"')
    assert problem("--model-repository", "models", file=file) == f"{file}: {ALLOWED}"


def test_a_bad_value_that_is_overridden_does_no_harm(file, monkeypatch):
    file.write_text('queue_max_length = "many"')
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGTH", "few")
    assert loaded("--model-repository", "models", "--queue-max-length", "3", file=file).queue_max_length == 3


def test_the_error_for_a_missing_setting_says_how_to_give_it():
    assert problem() == (
        "flag --model-repository, variable INFERD_MODEL_REPOSITORY or configuration file: "
        "model_repository: is required but not set; allowed: the path of a folder"
    )


def test_an_unknown_key_in_the_file_is_an_error_that_lists_the_known_ones(file):
    file.write_text("grcp_bind = 1")
    message = problem("--model-repository", "models", file=file)
    assert message.startswith(
        f"{file}: grcp_bind: unknown key (did you mean grpc_bind?); allowed: model_repository, grpc_bind, "
    )
    assert all(name in message for name in Settings.model_fields)


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        loaded("--grcp-bind=x")
    assert "--grcp-bind" in capsys.readouterr().err


def test_unknown_variables_are_told_apart_from_settings(monkeypatch):
    monkeypatch.setenv("INFERD_GRCP_BIND", "x")
    monkeypatch.setenv("INFERD_GRPC_BIND", "x")
    monkeypatch.setenv("INFERD_CONFIG", "x")
    assert unknown_variables() == {"INFERD_GRCP_BIND": " (did you mean INFERD_GRPC_BIND?)"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"queue_max_length = ", "not valid TOML: Invalid value (at end of document)"),
        (b"log_level = '\xff'", "not UTF-8 text"),
        (None, "No such file or directory"),
    ],
)
def test_an_unreadable_file_is_named_with_the_reason(file, content, reason):
    if content is not None:
        file.write_bytes(content)
    assert problem("--model-repository", "models", file=file) == f"{file}: {reason}"


@pytest.mark.parametrize(
    "bind", ["8001", ":8001", "localhost:", "localhost:65536", "localhost:x", "localhost:²", "::1:8001", "a b:1", ""]
)
def test_an_address_without_host_or_port_is_refused(bind):
    assert problem("--model-repository", "models", f"--grpc-bind={bind}") == (
        f"flag --grpc-bind: grpc_bind: got '{bind}'; "
        "allowed: HOST:PORT with a port of 0..65535, such as 127.0.0.1:8001 or [::1]:8001"
    )


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [("127.0.0.1:8001", "127.0.0.1", 8001), ("[::1]:0", "::1", 0), ("inferd.example:65535", "inferd.example", 65535)],
)
def test_an_address_is_split_into_host_and_port(bind, host, port):
    settings = loaded("--model-repository", "models", "--allow-insecure-bind", "--grpc-bind", bind)
    assert split_host_port(settings.grpc_bind) == (host, port)


@pytest.mark.parametrize(
    "endpoint", ["", "http://127.0.0.1:4317", "http://[::1]:4317", "https://collector.example:443"]
)
def test_spans_go_to_a_url_of_host_and_port_or_nowhere(endpoint):
    assert loaded("--model-repository", "models", f"--trace-endpoint={endpoint}").trace_endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4317",
        "http://",
        "http://collector",
        "http://c:x",
        "http://c:65536",
        "http://c:1/v1",
        "grpc://c:1",
        " ",
    ],
)
def test_any_other_endpoint_for_spans_is_refused(endpoint):
    assert problem("--model-repository", "models", f"--trace-endpoint={endpoint}") == (
        f"flag --trace-endpoint: trace_endpoint: got '{endpoint}'; "
        "allowed: http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:4317, or nothing"
    )


def test_an_empty_variable_does_not_make_the_working_folder_the_repository(monkeypatch):
    monkeypatch.setenv("INFERD_MODEL_REPOSITORY", "")
    assert problem() == ("variable INFERD_MODEL_REPOSITORY: model_repository: got ''; allowed: the path of a folder")


# -- the cache folder's default ---------------------------------------------------


def test_the_cache_folder_is_the_one_systemd_assigned(monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/inferd:/var/cache/other")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert loaded("--model-repository", "models").cache_dir == Path("/var/cache/inferd")


def test_the_cache_folder_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert loaded("--model-repository", "models").cache_dir == Path("/xdg/inferd")


def test_the_cache_folder_is_in_the_home_folder_otherwise(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert loaded("--model-repository", "models").cache_dir == Path("/home/someone/.cache/inferd")


# -- who can connect, and what that takes -----------------------------------------


@pytest.mark.parametrize("bind", ["127.0.0.1:1", "127.8.9.10:1", "localhost:1", "[::1]:1"])
def test_an_address_of_this_machine_alone_needs_nothing(bind):
    settings = loaded("--model-repository", "models", "--grpc-bind", bind, "--metrics-bind", bind)
    assert list(exposures(settings)) == []


@pytest.mark.parametrize("flag", ["grpc-bind", "metrics-bind"])
@pytest.mark.parametrize("bind", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "inferd.example:1", "[::ffff:127.0.0.1]:1"])
def test_an_address_others_can_connect_to_needs_tls_tokens_or_a_flag(flag, bind):
    base = ("--model-repository", "models", f"--{flag}", bind)
    assert problem(*base) == (
        f"flag --{flag}: {flag.replace('-', '_')}: {bind} is open to other machines; set tls_cert or tokens_file, or "
        "allow_insecure_bind if that is intended"
    )
    for enough in (
        ("--allow-insecure-bind",),
        ("--tokens-file", "t"),
        ("--tls-cert", "c", "--tls-key", "k"),
    ):
        assert loaded(*base, *enough).model_dump()[flag.replace("-", "_")] == bind


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--allow-insecure-bind",),
            [
                "without TLS, others on the network can read and change all traffic",
                "without tokens or client certificates, any client that can connect may call",
            ],
        ),
        (
            ("--tokens-file", "t"),
            ["without TLS, others on the network can read and change all traffic, tokens included"],
        ),
        (
            ("--tls-cert", "c", "--tls-key", "k"),
            ["without tokens or client certificates, any client that can connect may call"],
        ),
        (("--tls-cert", "c", "--tls-key", "k", "--tokens-file", "t"), []),
        (("--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"), []),
    ],
)
def test_the_exposure_of_an_open_port_is_described(flags, said):
    settings = loaded("--model-repository", "models", "--grpc-bind", "0.0.0.0:1", *flags)
    assert list(exposures(settings)) == [("grpc_bind", what) for what in said]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tls-cert", "c"), "flag --tls-cert: tls_cert: is set without tls_key; set both or neither"),
        (("--tls-key", "k"), "flag --tls-key: tls_key: is set without tls_cert; set both or neither"),
        (
            ("--tls-client-ca", "a"),
            "flag --tls-client-ca: tls_client_ca: is set without tls_cert: without TLS no client can present a "
            "certificate",
        ),
    ],
)
def test_incomplete_tls_settings_are_refused(flags, said):
    assert problem("--model-repository", "models", *flags) == said


def test_the_variable_with_a_clients_token_is_not_a_misspelt_setting(monkeypatch):
    monkeypatch.setenv("INFERD_TOKEN", "x")
    assert unknown_variables() == {}
