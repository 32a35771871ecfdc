"""Files and folders that are whole or not there at all, locks, and the errors of a disk."""
