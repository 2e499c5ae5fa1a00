"""Terms that own parameters or a memory: flax modules, called with the outputs of student and teachers."""
