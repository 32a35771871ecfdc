"""ReferenceNet's keys and values: computed, encoded, kept for a step or between runs."""
