"""The published weights: fetched, completed by the empty prompt, inspected."""
