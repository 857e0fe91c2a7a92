"""Worlds whose only difficulty is to remember: three games of POPGym, and bsuite's memory and discounting chains."""
