"""Regions of images: what a detector finds in them, as one table, and the files of the originals."""
