"""systemd's side: notifications, the status line, and the units."""
