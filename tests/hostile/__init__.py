"""Broken, odd and hostile input."""
