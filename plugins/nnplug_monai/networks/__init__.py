"""One module a network: MONAI's class, the builder that nnU-Net calls, and what is changed."""
