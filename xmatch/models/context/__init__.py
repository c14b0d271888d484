"""What reasons over the members of a set between head and pooling, by name."""
