"""Human preferences: projects of images to label, the labelling app, and what is read out of them."""
