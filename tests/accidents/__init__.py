"""Interruptions, crashes, forks, threads."""
