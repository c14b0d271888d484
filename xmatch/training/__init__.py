"""What is minimised, by which optimizer, and the recipe a trainer runs."""
