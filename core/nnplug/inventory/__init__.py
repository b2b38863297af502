"""Inventories: data sets described by a file that says where their images and labels are. Nothing is copied.

============  =========================================================================
loading       read an inventory or a raw data set, its own contradictions included
rules         what nnU-Net needs of labels, channels and names
case_check    what only the files of a case tell
checking      all of it, in parallel
making        an inventory from a folder or a table
overview      one picture of every case
cache         the folder that nnU-Net works in, and whether it still fits the inventory
============  =========================================================================
"""
