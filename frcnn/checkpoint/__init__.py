"""Weights and training states: read from any common origin without trust, written whole or not at all."""
