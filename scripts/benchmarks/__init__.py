# SPDX-License-Identifier: Apache-2.0
"""The measurements of scripts/bench.  In reading order:

    rows       the table: a row's name, what it measures, and how much of each peer's time is the target
    main       the options; runs the rows that were asked for
    contest    one row: contestants in turn, medians, verdicts
    bench      what rows share: sizes, images, registries, peers, a folder
    transfers  rows of copy, push and pull, on loopback and through the relay
    local      rows of the start-up, unpack and load
    serving    rows of serve
    clients    clients of serve that cost little themselves
    relay      a long wire on loopback
    processes  commands that are measured, servers that run beside
    launcher   one command, run from a small process
"""
