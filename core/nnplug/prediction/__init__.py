"""From a model folder and images to segmentations, ensembles and their post-processing."""
