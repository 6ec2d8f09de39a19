"""Tests of skve.uncertainty."""
