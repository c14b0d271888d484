"""The two halves of a dual encoder, before their heads."""
