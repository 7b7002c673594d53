"""Bundles behind the Open Inference Protocol: the protocol as pure functions, and applications that speak it."""
