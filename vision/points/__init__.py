"""Point clouds: voxels in the order of windows through any mixer of the core, and plain peers."""
