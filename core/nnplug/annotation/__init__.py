"""Sparse annotation of volumes by hand, in napari. Only ``viewer`` imports napari; nothing imports torch.

=======  =================================================================
classes  names and colours of the classes, from a file
session  one sample's annotation: start, resume, save, backup
start    the middle slice by Otsu's threshold
viewer   the window
=======  =================================================================

In an annotation 0 is what is not annotated; the classes count from 1 in the order of their file. `nnplug convert soil`
takes it like that.
"""
