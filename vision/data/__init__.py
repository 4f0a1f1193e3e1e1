"""Reading images: class folders, zips of them, IDX files, torchvision's data sets."""
