"""Requests on their way to a batch, and what is counted on it."""
