"""``inferd tune``: tune models offline, and ask or steer a running daemon's tuner."""

import argparse
import sys
from pathlib import Path
from typing import Any

from inferd.axes import CHOICES, QUANTITIES
from inferd.cli import connection, settings_flags
from inferd.cli.connection import credentials_from
from inferd.cli.parser import add_command, commands_of
from inferd.config.daemon import Group, Settings
from inferd.errors import ConfigurationError, InferdError, UnknownModel

_STEERING = {
    "status": "Show the state of a running daemon's tuner",
    "explain": "Explain the settings that a model is served with",
    "export": "Print a model's profile as JSON",
    "pin": "Keep a model's settings, or the given ones, whatever the tuner measures",
    "unpin": "Let the tuner change a pinned model again",
    "rollback": "Return to the settings before the last promotion, and pin them",
    "start": "Let a running daemon tune a model next, as soon as it has the time",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and subcommands of ``inferd tune``."""
    parser.description = "Measure the best settings of models, or ask and steer the tuner of a running daemon."
    commands = commands_of(parser, "tune_command")
    run = add_command(
        commands,
        "run",
        "Tune models of a repository now, without a daemon",
        "Measure, choose, and store a profile for the daemon to serve with. Stop other work on the machine first, "
        "including a daemon: it distorts the measurement.",
        usage="inferd tune run [MODEL ...] [SETTINGS]",
    )
    run.add_argument("models", nargs="*", metavar="MODEL", help="Models to tune (default: all)")
    run.add_argument(
        "--together",
        action="store_true",
        help="Measure each model while the others are under full load, in two rounds: for models that are busy at the "
        "same time",
    )
    run.add_argument("--plot", type=Path, metavar="DIR", help="Draw each search into DIR; needs matplotlib")
    run.add_argument("--plot-format", choices=("svg", "png"), default="svg", help="Format of the plots (default: svg)")
    settings_flags.add_arguments(run, (Group.MODELS, Group.PERFORMANCE))
    for name, summary in _STEERING.items():
        command = add_command(commands, name, summary)
        if name != "status":
            command.add_argument("model", metavar="MODEL")
            command.add_argument(
                "--model-version",
                default="",
                metavar="VERSION",
                help="Version of the model (default: the newest loaded)",
            )
        if name == "pin":
            for quantity, counted in QUANTITIES.items():
                command.add_argument(f"--{quantity}", type=int, metavar="INTEGER", help=counted.help)
            for choice, chosen in CHOICES.items():
                flag = f"--{choice.replace('_', '-')}"
                command.add_argument(flag, choices=tuple(chosen.words), help=chosen.help.removesuffix("."))
        command.add_argument(
            "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="Daemon to call (default: 127.0.0.1:8001)"
        )
        connection.add_arguments(command)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; the exit status is 1 when anything failed. Raises ConfigurationError."""
    if arguments.tune_command == "run":
        return _offline(settings_flags.settings_of(arguments), arguments)
    from inferd.rpc.tuner_client import TunerClient

    try:
        with TunerClient(arguments.server, credentials=credentials_from(arguments)) as client:
            return _steer(client, arguments)
    except InferdError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 1


# -- offline ----------------------------------------------------------------------


def _offline(settings: Settings, arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from inferd import logs
    from inferd.cli import tune_plot
    from inferd.cli.tune_display import TuneDisplay
    from inferd.deployment.settings import cpu_parts, source_of
    from inferd.engine.model import Engine
    from inferd.repository.find import Repository
    from inferd.tuner.offline import OfflineTuner
    from inferd.tuner.profile import Profiles
    from inferd.tuner.rules import TunerRules

    names: list[str] = arguments.models
    plots: Path | None = arguments.plot
    if plots is not None:
        tune_plot.check()
    logs.configure("warning", "console")
    repository = Repository.of(settings)
    listing = repository.scan()
    if oddity := repository.oddity():
        print(f"inferd: warning: {repository.root} {oddity}", file=sys.stderr)
    if unknown := sorted(set(names) - {e.name for e in listing.models}):
        broken = {b.name: b.error for b in listing.broken}
        raise broken.get(unknown[0]) or UnknownModel(unknown[0], [*(e.name for e in listing.models), *broken])
    rules = TunerRules.of(settings)
    parts = cpu_parts(listing.models, rules.cpu_threads if settings.cpu_sharing == "split" else 0)
    sources = [
        source_of(entry, version, parts.get(entry.name, 0))
        for entry in listing.models
        if not names or entry.name in names
        for version in entry.versions
    ]
    offline = OfflineTuner(
        Engine.of(settings),
        Profiles(settings.profile_dir),
        rules,
        TuneDisplay(Console(), rules.budget),
    )
    failures: list[InferdError] = []

    def failed(error: InferdError) -> None:
        failures.append(error)
        print(f"inferd: {error}", file=sys.stderr)

    profiles = offline.together(sources, failed) if arguments.together else []
    for source in sources if not arguments.together else ():
        try:
            profile = offline.one(source)
        except InferdError as error:
            failed(error)
            continue
        if profile is not None:
            profiles.append(profile)
    for profile in profiles if plots is not None else ():
        file = (plots or Path()) / f"{profile.model}-{profile.version}.{arguments.plot_format}"
        tune_plot.draw(profile, file)
        print(f"drawn into {file}")
    return 1 if failures else 0


# -- a running daemon -------------------------------------------------------------


def _steer(client: Any, arguments: argparse.Namespace) -> int:
    if arguments.tune_command == "status":
        return _status(client)
    model, version = arguments.model, arguments.model_version
    match arguments.tune_command:
        case "explain":
            _explain(client.explain(model, version))
        case "export":
            print(client.export(model, version), end="")
        case "pin":
            print(client.pin(model, version, settings=_settings(arguments)))
        case "unpin":
            print(client.pin(model, version, pinned=False))
        case "rollback":
            print(client.roll_back(model, version))
        case "start":
            print(client.tune(model, version))
    return 0


def _settings(arguments: argparse.Namespace) -> Any:
    """The settings that `pin` was given; None without any."""
    from inferd._pb.tuner_pb2 import Settings as Wanted

    numbers = {name: value for name in QUANTITIES if (value := getattr(arguments, name)) is not None}
    choices = {name: word for name in CHOICES if (word := getattr(arguments, name)) is not None}
    if wrong := [name for name, value in numbers.items() if not 0 < value < 1 << 31]:
        raise ConfigurationError(f"flag --{wrong[0]}", "", f"got {numbers[wrong[0]]}", allowed="1 or more")
    return Wanted(**numbers, choices=choices) if numbers or choices else None


def _status(client: Any) -> int:
    for t in client.status():
        phase = t.phase + (f", {t.spent:.0f} of {t.budget:.0f} s" if t.phase == "searching" else "")
        print(f"{t.model} {t.version} on {t.device or 'its devices'}: {phase}")
        gain = f", {t.gain:.2f} times what the THROUGHPUT hint gives" if t.gain else ""
        print(f"  served with {t.serving or 'its settings'}{' (pinned)' if t.pinned else ''}{gain}")
        if t.best:
            print(f"  the best of {t.looks} looks so far: {t.best}")
        if t.said:
            print(f"  {t.said}")
        if decisions := [f"{n} {name}" for name, n in sorted(t.decisions.items()) if n]:
            print(f"  ended: {', '.join(decisions)}")
    return 0


def _explain(answer: Any) -> None:
    tuning = answer.tuning
    serving = tuning.serving or "as its settings say"
    print(f"{tuning.model} {tuning.version} on {tuning.device or 'its devices'}: {serving}")
    print(answer.reason or tuning.said or "It was not tuned yet.")
    if not answer.points:
        return
    if answer.objective:
        print(f"objective: {answer.percentile:g} % within {answer.objective * 1000:.3g} ms")
    if answer.out_of_reach:
        print("no measured candidate keeps the objective")
    for name, ratio in sorted(answer.gains.items()):
        print(f"{ratio:.2f} times {name}")
    from rich.console import Console
    from rich.table import Table

    table = Table("", "candidate", "goodput/s", "95 %", "throughput/s", "p50 ms", f"p{answer.percentile:g} ms", "keeps")
    for p in answer.points:
        table.add_row(
            "*" if p.chosen else "",
            p.candidate,
            f"{p.goodput:.4g}",
            f"{p.low:.4g}..{p.high:.4g}",
            f"{p.throughput:.4g}",
            f"{p.median * 1000:.3g}",
            f"{p.tail * 1000:.3g}",
            "-" if not answer.objective else "yes" if p.eligible else "no",
        )
    Console().print(table)
    for line in answer.left_out:
        print(f"left out: {line}")
