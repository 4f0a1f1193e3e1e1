"""Image manipulation: forged images with exact masks, and where an image was changed."""
