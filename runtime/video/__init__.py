"""Videos in: frames at random and in order, upright, as RGB in a known colour space. Needs PyAV."""
