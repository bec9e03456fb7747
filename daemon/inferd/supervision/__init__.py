"""What the process's supervisor is told, and when it is told that all is well."""
