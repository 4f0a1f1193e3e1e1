"""Video: networks that carry a state over the frames of a clip, for mattes and for classes."""
