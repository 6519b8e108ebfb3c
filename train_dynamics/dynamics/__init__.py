"""Measures of training dynamics: pure functions from arrays to arrays, one idea a file."""
