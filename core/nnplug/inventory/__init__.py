"""Inventories: data sets described by a file that says where their images and labels are. Nothing is copied.

============  ===========================================================================
loading       read an inventory or a raw data set, its own contradictions included
rules         what nnU-Net needs of labels, channels and names
file_stats    look at many files
readers       which of nnU-Net's classes reads the images
case_check    what only the files of a case tell
nifti_bytes   what ITK does not tell of a NIfTI file
checking      all of it, in parallel
making        an inventory from a folder or a table
patterns      where the files of cases are
old_style     the description of the Decathlon and nnU-Net v1
overview      one picture of every case
============  ===========================================================================
"""
