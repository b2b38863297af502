"""Conversion: images of other layouts and formats to raw data sets of nnU-Net's, and predictions back.

===========  ==================================================================
reading      an image of any common format, voxel for voxel
spacing      voxel spacing: stated, beside the image, in its header
writing      nnU-Net's formats without loss
target       the folder of the new data set
running      in parallel, file by file whole, going on where it stopped
log          what was converted of what, for that
decathlon    task folders of the Decathlon and of nnU-Net v1
images       images of any common format
soil         sparsely annotated X-ray CT
predictions  predictions to MHA or TIFF
describing   a dataset.json for a raw data set without one
===========  ==================================================================
"""
