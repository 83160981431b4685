"""Rotary embeddings as others write them, and what is none: boxes to be identified.

Nothing here imports rotary.
"""
