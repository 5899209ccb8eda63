"""Models in onnxruntime: to compare their answers and to time them."""
