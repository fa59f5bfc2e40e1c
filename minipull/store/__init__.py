# SPDX-License-Identifier: Apache-2.0
"""The store: images on disk, under one root.

The modules in reading order:

    source         blobs to be read, of a store or of an archive
    compression    gzip and zstd undone, within bounds
    content        blobs under their digests
    ingest         a blob on its way in
    layer          one record a ChainID
    references     index.json: names to manifests
    metadata       the layer of each blob, and the repositories that have it
    sessions       uploads with which another process may go on
    store          all of these under one root
    signatures     cosign's signatures among the images
    usage          the bytes of each image, shared or not
    gc             remove the blobs that no name needs
    check          is every byte what its name says?
    repair         room for the next pull where a blob is rotten
"""
