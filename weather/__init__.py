"""Weather and climate: emulators over any mixer beside linear pattern scaling, and ConvS5 video models."""

# Packages of the `weather` extra that the domain needs; the command line checks them before it starts.
REQUIRES = ("xarray", "h5netcdf", "h5py", "zarr", "cftime", "scipy", "sklearn")

__all__ = ["REQUIRES"]
