"""From data to what a training reads: nnU-Net's fingerprint, plans and preprocessed cases.

=================  ==========================================================================
pipeline           the steps one after the other, with nnU-Net's defaults
missing_steps      those of them that a training still needs
data               what is planned: a raw data set, or an inventory and its cache
data_record        what the fingerprint was taken of, and what has changed since
stock_data         what nnU-Net itself has made, and whether it is seen to be stale
fingerprint        sizes, spacings and foreground of every case, merged
samples            the intensities that nnU-Net draws of the foreground
experiment         nnU-Net's planner
planner            the planner of plans that are there: its choices, its estimate of memory
plans_file         plans and what their configurations are
settings           what can be set in a configuration
derivation         a configuration made from another one
trainer_fit        patch and batch for the network of a trainer
plans_writing      derived configurations in their plans, or in new ones
moving             plans of one data set for another
preprocessing      the cases of each configuration
preprocessed_case  one of them, as a training reads it
splits             folds by group, stratified, with cases held out
split_checks       leaks, and cases that are unknown or missing
ground_truth       the labels that a validation compares with
shards             a part of the cases, for job arrays
classes            nnU-Net's classes by name
=================  ==========================================================================

The work on each case is nnU-Net's own; what is done around it makes a failing case cost only itself, lets an
interrupted run resume, and puts a result into its place only when it is whole.
"""
