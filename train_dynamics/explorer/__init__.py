"""The explorer, a page on which all examples move through training: its data, its server, and its export."""
