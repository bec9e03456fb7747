"""The systemd units, made from one text: a single daemon, and one of several instances."""

from importlib import resources

# Where systemd/README.md tells people to install inferd who copy the units.
DEFAULT_EXECUTABLE = "/opt/inferd/bin/inferd"
UNITS = ("inferd.service", "inferd@.service")

_ENVIRONMENT = {
    "inferd.service": "EnvironmentFile=-/etc/inferd/inferd.env",
    # The last setting counts.
    "inferd@.service": "EnvironmentFile=-/etc/inferd/inferd.env\nEnvironmentFile=-/etc/inferd/%i.env",
}
_DESCRIPTION = {
    "inferd.service": "Inference daemon for OpenVINO models",
    "inferd@.service": "Inference daemon for OpenVINO models (%i)",
}


def unit(name: str, executable: str, written_by: str) -> str:
    """The text of the unit ``name``, one of :data:`UNITS`, that runs ``executable``, an absolute path."""
    text = resources.files("inferd.systemd").joinpath("inferd.service.in").read_text()
    for placeholder, value in (
        ("written_by", written_by),
        ("name", name.removesuffix(".service") + ("INSTANCE" if "@" in name else "")),
        ("description", _DESCRIPTION[name]),
        ("executable", executable.replace("%", "%%")),
        ("environment", _ENVIRONMENT[name]),
    ):
        text = text.replace("{" + placeholder + "}", value)
    return text
