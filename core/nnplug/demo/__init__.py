"""``nnplug demo``: real images through the whole pipeline, two trainers side by side."""
