"""The gradient that each single example asks for."""
