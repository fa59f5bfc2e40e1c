# SPDX-License-Identifier: Apache-2.0
"""Kills, power cuts, random input and many processes at once.

    test_crash_points   kill -9 at a call that changes the disk; a power cut at any sync
    test_fuzz           random documents, headers, archives, stores, requests and answers
    test_model          ten processes with random verbs in one store

The suite tries a part of it; more, or something else, is a matter of

    MINIPULL_TEST_ALL=1              every call of the system, not every third
    MINIPULL_TEST_SEED=N             other calls, other verbs
    MINIPULL_TEST_MODEL_SECONDS=N    the model test for that long (20)
    --fuzz N, --fuzz-seed S          that many random cases of each kind (2000), and others (0)
"""
