"""Work in other processes, which end when it ends."""
