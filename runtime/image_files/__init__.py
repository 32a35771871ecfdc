"""Image files in and out: pixels, colour profiles, metadata, and what damage looks like."""
