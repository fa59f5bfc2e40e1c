# SPDX-License-Identifier: Apache-2.0
"""Pull, push and copy: images between registries, the store and files.

The modules in reading order, with moby's names where moby has them; those that
decide otherwise than moby's end their docstring with the points:

    blobs      one blob in or out, continued where it broke off
    sessions   a blob to a registry, from where another process left it
    documents  manifests side by side
    read       a manifest that may be missing, referrers, blobs that are not kept
    ask        tags(), digest(), inspect(): of an image that is not pulled
    verify     signatures at a registry
    places     how an end of a copy is written
    ends       registries and layouts as ends of a copy
    referrers  signatures, attestations and SBOMs of an image
    naming     the name of a pulled image
    layers     layers of one endpoint
    pull_v2    an image from one endpoint
    pull_v1    an image from one endpoint, by the v1 protocol
    pull       pull(), from the first endpoint that has the image
    mounts     repositories that a layer may be mounted from
    push_v2    an image to one endpoint
    schema1    an image in the manifest format of old, either way
    push_v1    images to one endpoint, by the v1 protocol
    push       push(), to the first endpoint that takes the images
    plan       the blobs that a pull or push would move
    check      check of an image at a registry
    archives   archives as ends of a copy
    convert    docker's format to OCI's and back
    job        one image from end to end, its layers to gzip; the tally of a command
    copy       copy(): images from end to end
"""
