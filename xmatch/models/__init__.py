"""Dual encoders: towers, heads, and how they are saved."""
