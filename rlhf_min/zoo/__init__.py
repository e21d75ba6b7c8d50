"""The built-in example: a world with known ratings and a tiny model; skip it on a first reading."""
