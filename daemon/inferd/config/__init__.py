"""Every setting, declared once: ``daemon`` for the process, ``model`` for one model."""
