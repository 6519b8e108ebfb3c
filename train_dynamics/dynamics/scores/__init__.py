"""Published scores of how hard an example is, one idea a file; `registry.SCORES` lists them."""
