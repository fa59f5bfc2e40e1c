# SPDX-License-Identifier: Apache-2.0
"""The command line: the only one that prints, reads the environment or handles signals.

The modules in reading order:

    settings    flags, environment and files become objects
    render      progress on a terminal, in a log, as JSON
    context     what commands share
    registry    the commands that speak to registries
    store       those on the store
    rootfs      those that look into an image
    login       login and logout
    doctor      does it work here, what does this host offer?
    serve       the commands that need the server
    parser      every flag
    main        run(), and signals
"""
