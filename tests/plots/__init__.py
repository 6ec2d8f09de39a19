"""Tests of skve.plots."""
