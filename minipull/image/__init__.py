# SPDX-License-Identifier: Apache-2.0
"""Documents: what an image says, parsed strictly; no I/O.

The modules in reading order:

    strictjson    JSON from outside, read one way only; the one compact writer
    platform      os, architecture, variant, and what runs where
    descriptor    content by type, digest and size
    manifest      manifests and indexes, raw bytes kept
    config        image configs, and the image that pull() returns
    walk          the walk down an index: each document once, children first, bounded
    es256         ECDSA signatures, for schema 1 alone
    schema1       the signed manifests of old
    tar           tar streams, read strictly, written the same each time
"""
