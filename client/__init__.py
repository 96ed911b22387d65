"""Sidelight."""
