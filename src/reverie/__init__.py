"""Reverie: agents that learn a model of a server fleet, dream inside it, and adapt to traffic they have never seen."""

__version__ = "0.1.0"
