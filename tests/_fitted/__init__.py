"""Tests of skve._fitted."""
