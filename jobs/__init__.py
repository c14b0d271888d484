"""The scripts a person runs; `python -m jobs` lists them."""
