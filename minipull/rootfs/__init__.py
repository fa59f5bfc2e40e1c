# SPDX-License-Identifier: Apache-2.0
"""A root file system made of layers.

The modules in reading order:

    overlay    the rules on names in memory: whiteouts, links, replacement
    removal    directories removed by descriptors
    layers     the entries of a layer, verified on the way
    rootfs     the tree on disk, by directory descriptors
    unpack     unpack(): the tree of a stored image
    flatten    the same tree as one tar, or one file of it
"""
