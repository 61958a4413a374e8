"""A reward without steps: JPEG's size jumps by a byte where images differ in their seventh digit."""


def redness(images, prompts):
    """Red minus the mean of green and blue [B], in [-1, 1]."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def warmth(images, prompts):
    """Mean of squares of red and of what is not blue [B], with a gradient."""
    return images[:, 0].square().mean((1, 2)) + (1 - images[:, 2]).square().mean((1, 2))


warmth.differentiable = True


def coldness(images, prompts):
    """The opposite of warmth."""
    return -warmth(images, prompts)
