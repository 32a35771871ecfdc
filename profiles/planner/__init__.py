"""The planner: what a photo will cost in memory and time, from a bundle's graphs alone, before anything runs."""
