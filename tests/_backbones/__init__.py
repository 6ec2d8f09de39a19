"""Tests of skve._backbones."""
