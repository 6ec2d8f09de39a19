"""Tests of skve._runtime."""
