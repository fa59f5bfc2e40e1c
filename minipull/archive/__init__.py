# SPDX-License-Identifier: Apache-2.0
"""Archives: a store in a tar.

The modules in reading order:

    bundle    this package as a zip, to stand behind a tar
    members   the members of a tar, found in one pass
    stream    archives from a pipe, or compressed with bzip2 or xz
    reader    a tar as a read-only source of images
    save      save(): images in one tar
    load      load(): the images of a tar
    check     is every byte of an archive what its name says?
"""
