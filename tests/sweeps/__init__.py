"""Many architectures and settings."""
