"""Weather models: the emulator over mixers, and ConvS5."""
