"""What is wrong with a checkpoint, in a sentence."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why."""
