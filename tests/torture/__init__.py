"""The hybrid store, broken on purpose: real processes, real kills, real files."""
