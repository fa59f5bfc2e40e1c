# SPDX-License-Identifier: Apache-2.0
"""Pull, push and copy: images between registries, the store and files.

The modules in reading order:

    blobs      one blob in or out, continued where it broke off
    pull_v2    one reference from one endpoint
    pull_v1    one tag from one by the v1 protocol
    pull       pull()
    mounts     where a layer may be had from without sending it
    push_v2    one image to one endpoint
    schema1    an image in the manifest format of old
    push_v1    images to one by the v1 protocol
    push       push()
    places     how an end of a copy is written
    ends       the two ends of a copy
    archives   archives as such ends
    convert    docker's format to OCI's and back
    copy       copy(): an image from end to end
"""
