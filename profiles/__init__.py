"""Device profiles: what a device is, and how photos are restored on it; and the planner, which says what fits."""
