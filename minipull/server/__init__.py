# SPDX-License-Identifier: Apache-2.0
"""A registry over a store; shares no code with the client, so that they share no fault.

The modules in reading order:

    message     requests parsed, answers made
    http        the listener: a small HTTP/1.1 server
    blobs       blobs, out and in; upload sessions on disk
    catalog     which repository a URL means; pages of names
    overview    the images, and the layers that they share
    page        the same as a page for a browser
    registry    routes and manifests; serve()
"""
