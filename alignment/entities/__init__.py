"""Entities: spans of captions, boxes of images, the prompts, masked captions and painted images made of them."""
