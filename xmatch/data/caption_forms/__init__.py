"""The forms in which captioned image sets are published, a few to a file."""
