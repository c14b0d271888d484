"""Ranks, recall, and how they are shown."""
