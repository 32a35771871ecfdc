"""What a photo costs: latency, memory and energy, each in a fresh process where it must be."""
