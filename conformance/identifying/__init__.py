"""How :func:`rotary.conformance.identify` asks, reads, names and verifies, a module each."""
