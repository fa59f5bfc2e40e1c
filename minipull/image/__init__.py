# SPDX-License-Identifier: Apache-2.0
"""Documents of an image, parsed strictly, without I/O.

The modules in reading order:

    strictjson    JSON from outside, read one way only; the one compact writer
    platform      os, architecture, variant, and which of them run where
    descriptor    media types; content by type, digest and size
    manifest      manifests and indexes, raw bytes kept
    config        image configs, and the image that pull() returns
    walk          the walk down an index: each document once, children first, bounded
    es256         ECDSA signatures
    signature     cosign's signatures, judged
    schema1       signed manifests of schema 1, read and written
    pax           the fields of a tar's headers: numbers, maps of sparse files
    tar           tar streams, read strictly, written the same each time
"""
