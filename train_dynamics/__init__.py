"""Record and analyse the gradient of every training example at every iteration."""

from importlib import metadata

try:
    __version__ = metadata.version("train-dynamics")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
