"""Tests of skve._ensembles."""
