"""Heads by their definitions, written term by term in float64: slow, and obviously right."""
