"""How good predictions are: overlap, surfaces and instances, for each case and class of a folder."""
