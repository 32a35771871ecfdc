"""What becomes of a validation report: files for people and machines, the comparison with an earlier one, the gate."""
