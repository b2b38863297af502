"""Which trainers there are: plug-ins, recipes, nnU-Net's own classes."""
