"""What the command's exit status tells a supervisor; docs/architecture.md lists them."""

# sysexits.h: EX_CONFIG. systemd's RestartPreventExitStatus can name it: a restart won't mend a setting.
CONFIGURATION = 78
FAILED_START = 3
# sysexits.h: EX_TEMPFAIL. Drained, for a fresh process to take over a device that this one has lost.
RESTART = 75
