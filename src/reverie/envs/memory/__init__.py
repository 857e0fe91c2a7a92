"""Worlds whose only difficulty is to remember: games of POPGym, bsuite's memory and discounting chains, a maze."""
