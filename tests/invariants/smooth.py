"""A reward without steps: JPEG's size jumps by a byte where pictures differ in their seventh digit."""


def redness(images, prompts):
    """Red minus the mean of green and blue [B], in [-1, 1]."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
