"""Learning vector quantisation: the class of the nearest prototype, by a learned distance."""
