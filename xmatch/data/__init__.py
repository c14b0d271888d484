"""Captions, images, vectors and files: everything that is read before a model sees it."""
