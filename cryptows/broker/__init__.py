"""Decisions; the time is an argument."""
