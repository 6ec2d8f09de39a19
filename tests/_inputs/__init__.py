"""Tests of skve._inputs."""
