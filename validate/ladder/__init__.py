"""Parity, from the photo down to the operator: where an engine first departs from the recording."""
