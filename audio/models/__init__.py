"""Models of audio: the Mamba detector and SpecTTTra."""
