# SPDX-License-Identifier: Apache-2.0
"""The client side of a registry, over HTTP.

The modules in reading order:

    url            the origin of a URL
    head           the head of a request, and that of an answer
    errors         an answer or a failed exchange as an error; whether another endpoint is asked
    proxy          HTTP_PROXY and NO_PROXY
    tls            TLS contexts, and the certificates of certs.d
    request        a request as one value, and its body
    response       an answer whose body is still on the wire
    network        the rate, the hosts that may be asked; records of connections, bytes and quotas for the user
    connection     one HTTP/1.1 connection
    transport      a pool of connections; redirects, repeats
    auth           challenges and tokens
    endpoints      the hosts to ask, mirrors first
    upload         a blob on its way to a registry
    v2             the v2 protocol
    v1             the v1 protocol
    client         connections that repositories share; the loop over endpoints
    credentials    config.json and credential helpers, read
    login          the same, written
"""
