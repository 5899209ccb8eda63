"""What ``triton_quadratic.py`` measures on a GPU, part by part."""
