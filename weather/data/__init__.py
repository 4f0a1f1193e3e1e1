"""Weather data: CF NetCDF and Zarr in and out, units, calendars, scenarios, moving digits."""
