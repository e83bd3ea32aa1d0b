"""The whole thing on one machine: a simulated provider and a stand-in for Lago."""
