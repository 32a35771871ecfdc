"""Sweeps: many ways of restoring a data set, each measured; which of them nothing beats; one as a device profile."""
