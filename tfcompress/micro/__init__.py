"""Files for microcontrollers: kernels that TensorFlow Lite Micro decodes by itself."""
