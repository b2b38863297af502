"""Trained models as zip files in nnU-Net's layout, with what is needed to predict with them. Imports no torch."""
