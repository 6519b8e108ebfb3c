"""A page on which all examples move through training: what it is given, who may ask for it, and its export."""
