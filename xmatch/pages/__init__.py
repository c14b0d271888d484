"""Static pages that show images beside text: cards, thumbnails, and one template."""
