"""What the command's exit status tells a process supervisor; docs/architecture.md lists them."""

# sysexits.h: EX_CONFIG. systemd's RestartPreventExitStatus can name it: a restart does not fix a setting.
CONFIGURATION = 78
FAILED_START = 3
# sysexits.h: EX_TEMPFAIL. Drained, so that a new process can take over a device that this one has lost.
RESTART = 75
# sysexits.h: EX_SOFTWARE. Something hung, so that the drain did not end in time.
OVERDUE = 70
# As a shell reports SIGPIPE: the reader of the output has had enough.
BROKEN_PIPE = 141
