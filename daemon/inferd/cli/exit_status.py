"""What the command's exit status tells a supervisor; docs/architecture.md lists them."""

# sysexits.h: EX_CONFIG. systemd's RestartPreventExitStatus can name it: a restart won't mend a setting.
CONFIGURATION = 78
FAILED_START = 3
