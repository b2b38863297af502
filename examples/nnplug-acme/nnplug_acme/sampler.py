import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


class WithoutReplacement(nnUNetDataLoader):
    """Draws every training case once, in random order, before one comes again; each data worker for itself."""

    waiting = ()

    def get_indices(self):
        chosen = []
        while len(chosen) < self.batch_size:
            if not len(self.waiting):
                self.waiting = np.random.permutation(self.indices)
            chosen.append(self.waiting[0])
            self.waiting = self.waiting[1:]
        return chosen
