"""What quantized and packed layers share: which axes are output channels."""

# Keras kernels end in their output channels; a depthwise kernel ends in
# (input channel, multiplier), which together are its output channels.
CONV_OR_DENSE = (-1,)
DEPTHWISE = (-2, -1)
