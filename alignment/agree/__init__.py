"""AGREE: a dual encoder learns that entities, not only whole sentences, belong to images."""
