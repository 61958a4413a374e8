"""Reward models that were trained on people's comparisons of images (`tastemaker reward train`), as rewards."""
