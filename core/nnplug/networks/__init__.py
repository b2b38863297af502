"""The network of a config: built, tried without computing, measured, drawn."""
