"""Faults of TensorFlow that the package avoids."""


def avoid_fused_pads() -> None:
    """Switches off the fusions of TensorFlow's remapper, for this process.

    The remapper fuses a convolution, its bias, an addition and a ReLU to one node.
    oneDNN's layout pass then merges this node with any `Pad` that it reads, although
    the pad may be the other term of the addition, as in the shortcuts of ResNet-20.
    The node is left with an input too few, and the process ends in a segmentation
    fault, or not, depending on addresses (TensorFlow 2.21). An option "remapping" that
    the user has set stays as it is.
    """
    import tensorflow as tf  # not at the top: other backends do not need it

    optimizer = tf.config.optimizer
    if "remapping" not in optimizer.get_experimental_options():
        optimizer.set_experimental_options({"remapping": False})
