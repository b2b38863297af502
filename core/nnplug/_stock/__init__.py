"""The folder that ``nnUNet_extTrainer`` names; a package only so that it is installed."""
