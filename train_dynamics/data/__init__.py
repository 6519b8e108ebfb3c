"""Examples, as arrays, and which of them an update uses."""
