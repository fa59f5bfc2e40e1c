# SPDX-License-Identifier: Apache-2.0
"""The command line: the only wing that prints, reads the environment or handles signals.

Each command is a function ``(context, flags) -> exit code or None`` in the module
that the parser names; that module is imported once the command runs, so that
none loads what only others need.  In this wing alone, imports may stand inside
functions: what works offline must not load the network stack.

The modules in reading order:

    settings    flags, environment and files become objects
    render      progress on a terminal, in a log, as JSON
    context     what commands share; errors become a line and an exit code
    registry    pull push copy tags manifest digest
    store       images inspect tag rm gc check save load
    rootfs      unpack export cat
    login       login logout
    doctor      does it work here, what does this host offer?
    serve       serve
    parser      every flag of every command
    main        run(), and signals
"""
