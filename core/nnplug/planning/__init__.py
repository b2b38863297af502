"""From data to what a training reads: nnU-Net's fingerprint, plans and preprocessed cases.

=================  ==========================================================================
pipeline           the steps one after the other, with nnU-Net's defaults
missing_steps      those of them that a training still needs
data               what is planned: a raw data set, or an inventory and its cache
data_record        what the fingerprint was taken of, and what has changed since
fingerprint        sizes, spacings and foreground of every case, merged
samples            the intensities that nnU-Net draws of the foreground
experiment         nnU-Net's planner
preprocessing      the cases of each configuration
preprocessed_case  one of them, as a training reads it
ground_truth       the labels that a validation compares with
shards             a part of the cases, for job arrays
classes            nnU-Net's classes by name
disk               a disk that fills
=================  ==========================================================================

The work on each case is nnU-Net's own; what is done around it makes a failing case cost only itself, lets an
interrupted run resume, and puts a result into its place only when it is whole.
"""
