"""Tests of skve.metrics."""
