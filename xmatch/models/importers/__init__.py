"""Checkpoints of the original programs as our dual encoders, and back; a file per original."""
