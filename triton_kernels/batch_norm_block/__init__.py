"""The element-wise half of a training step of BN_a(a)∘BN_b(b) + BN_c(c), in few passes."""
