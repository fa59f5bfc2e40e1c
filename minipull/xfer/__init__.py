# SPDX-License-Identifier: Apache-2.0
"""Work that is shared, and layers in order.

The modules in reading order:

    transfer    transfers that users share, within a number of slots
    download    layers side by side, registered as a chain
    upload      blobs side by side
"""
