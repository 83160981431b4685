"""Arithmetic whose bits do not depend on the machine or on the array library."""
