"""Tests of skve._training."""
