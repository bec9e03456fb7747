"""The model repository on disk: what it holds, and when that changes."""
