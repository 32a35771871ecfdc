"""A set's images restored and measured one by one, resumable, here or over machines."""
