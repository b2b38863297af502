"""One run: nnU-Net's loop with the seams that a config fills, and what a run writes, shows and survives."""
