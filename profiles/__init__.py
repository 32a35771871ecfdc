"""Device profiles: what a device takes and what fits."""
