"""A bundle to a smaller one: recipes, calibration, and the search for what may be narrow."""
