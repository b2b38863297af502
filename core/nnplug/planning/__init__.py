"""From data to what a training reads: nnU-Net's fingerprint, plans and preprocessed cases.

=============  ==========================================================================
data           what is planned: a raw data set, or an inventory and its cache
data_record    what the fingerprint was taken of, and what has changed since
fingerprint    intensities and sizes of every case, merged
experiment     nnU-Net's planner
preprocessing  the cases of each configuration
ground_truth   the labels that a validation compares with
shards         a part of the cases, for job arrays
=============  ==========================================================================

The work on each case is nnU-Net's own; what is done around it makes a failing case cost only itself, lets an
interrupted run resume, and puts a result into its place only when it is whole.
"""
