"""Pure steps, seeds side by side, blocks of iterations."""
