"""Bundles on Ray; what is in here needs the extra ray."""
