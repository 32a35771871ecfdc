"""Quality metrics, each tested against another implementation."""
