"""Video forecasting with ConvS5: a science of its own beside the climate emulators."""
