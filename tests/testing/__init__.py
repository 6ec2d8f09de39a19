"""Tests of skve.testing."""
