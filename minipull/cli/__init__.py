# SPDX-License-Identifier: Apache-2.0
"""The command line: the only wing that prints, reads the environment or handles signals.

A command is a function do_NAME of a Context and its flags, in the module that the
parser names; it returns an exit code, or None for 0.  Modules of commands are imported
when they run, and only in this wing imports may stand inside functions: offline
commands must not load the network stack.

The modules in reading order:

    lines       tables, the line that says what failed, and the bundle that we are in
    settings    flags, environment and files become objects
    access      registries and credentials, as the settings have them
    effective   the settings in effect, where each comes from; unknown keys; environment()
    pace        bytes a second, time left
    render      progress on a terminal, in a log, as JSON
    local       the flags of commands that share none
    commands    the flags of the others
    habits      the words of other tools, and ours for them
    parser      the parser of one command
    context     settings, store and output of a command; errors become exit codes
    lists       @FILE, globs of tags, pins
    plan        --dry-run: what would move
    ask         catalog referrers blob delete
    registry    pull push tags manifest digest
    copy        copy
    images      images history df
    store       inspect tag rm gc save load
    check       check verify
    rootfs      unpack export cat
    login       login logout
    diagnosis   doctor REF: the way of a pull
    doctor      doctor
    serve       serve
    completion  completion
    bundle      a bundle on itself; the version
    main        run(), and signals
"""
