# SPDX-License-Identifier: Apache-2.0
"""A root file system made of layers: in a directory, as one tar, or one file of it.

The modules in reading order:

    layers     the layers of an image, and the entries of one, verified on the way
    overlay    the rules, on names in memory
    rootfs     the tree on disk, made as the overlay says, and removed
    unpack     unpack(): the tree of a stored image in a directory
    flatten    the same as one tar, and one file of it
"""
