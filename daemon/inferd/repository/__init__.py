"""The model repository on disk: its models, and when they change."""
