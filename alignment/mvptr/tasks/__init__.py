"""Tasks on a text and an image: their files, labels, metrics and prediction files."""
