"""Trained models on disk: folders, checkpoints, results."""
